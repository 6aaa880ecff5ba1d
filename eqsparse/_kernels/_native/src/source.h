// A matrix as it is stored, read as rows of CSR.
#pragma once

#include <atomic>

#include "rows.h"

namespace eqsparse {

// Memory that one worker decodes into.
struct Room {
  float* values;
  int32_t* columns;  // or as many of 16 bits
  int32_t *begins, *ends;
};

// A matrix stored in some way. Its entries that are no padding are decoded some rows at a time, at most `kRows`.
class Source {
 public:
  const int64_t out_size, in_size, stored;

  Source(int64_t out_size, int64_t in_size, int64_t stored) : out_size(out_size), in_size(in_size), stored(stored) {}
  virtual ~Source() = default;

  // The most entries in `step` rows that begin at a multiple of it: what `rows` has room for.
  virtual int64_t most(int64_t step) const = 0;

  virtual Rows rows(int64_t first, int64_t count, const Room& room) const = 0;

  // Where the samples of these rows are written to; `put` then brings them to their places.
  virtual float* samples(const Rows& rows, void* out, float* room) const = 0;
  virtual void put(int64_t first, const Rows& rows, const float* samples, void* out) const = 0;

  // Whether a place was found that there is not, or places that are not in order. Nothing foreign is read or written.
  mutable std::atomic<bool> is_wrong{false};

  // Writes zeros where `put` will write nothing.
  virtual void clear(void* out) const = 0;

 protected:
  // Whether columns need 32 bits, in layouts that are decoded.
  bool is_wide() const { return in_size > 65536; }

  // `decode` of columns of that size.
  template <class Decode>
  Columns decoded(const Room& room, Decode decode) const {
    if (is_wide()) decode(room.columns);
    else decode(reinterpret_cast<uint16_t*>(room.columns));
    return {room.columns, is_wide()};
  }
};

// Numbers in float or bfloat16, one after the other. A null pointer where only places are asked for.
struct Numbers {
  void* data;
  bool is_half;

  float* floats() const { return static_cast<float*>(data); }
  BFloat16* halves() const { return static_cast<BFloat16*>(data); }

  void read(int64_t at, int64_t count, float* to) const {
    if (is_half) for (int64_t i = 0; i < count; ++i) to[i] = to_float(halves()[at + i]);
    else for (int64_t i = 0; i < count; ++i) to[i] = floats()[at + i];
  }

  void write(int64_t at, int64_t count, const float* from) const {
    if (is_half) for (int64_t i = 0; i < count; ++i) store(halves() + at + i, from[i]);
    else for (int64_t i = 0; i < count; ++i) floats()[at + i] = from[i];
  }

  void clear(int64_t begin, int64_t end) const {
    const int64_t size = is_half ? 2 : 4;
    if (end > begin) std::memset(static_cast<char*>(data) + begin * size, 0, (end - begin) * size);
  }
};

}  // namespace eqsparse
