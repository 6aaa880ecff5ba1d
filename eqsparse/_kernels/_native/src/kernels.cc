// The products as XLA calls them.

#include "product.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace eqsparse {
namespace {

// XLA's threads. Its allocator for scratch does not serve CPUs, so memory comes from the system.
class Call final : public Machine {
 public:
  explicit Call(ffi::ThreadPool& pool) : pool_(pool) {}

  int64_t threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> task) const override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

// An array as XLA passes it.
struct Array {
  void* data = nullptr;
  ffi::DataType type = ffi::DataType::INVALID;
  ffi::Span<const int64_t> sizes;

  Array() = default;
  explicit Array(const ffi::AnyBuffer& buffer)
      : data(buffer.untyped_data()), type(buffer.element_type()), sizes(buffer.dimensions()) {}

  int64_t size(int axis) const { return sizes[sizes.size() + axis]; }

  int64_t count() const {
    int64_t count = 1;
    for (int64_t size : sizes) count *= size;
    return count;
  }

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }

  Dense dense() const { return {data, size(-1), type == ffi::BF16}; }
};

// A stored matrix: its values (null pointers where only places are asked for), and arrays that tell where they are.
struct Stored {
  Array values, indices[2];
  int64_t out_size, in_size;
};

template <class T>
using Type = T*;  // stands for a type in an argument: a null pointer to it

template <class F>
ffi::Error by_value(const Stored& a, F f) {
  if (a.values.type == ffi::F32) return f(Type<float>());
  if (a.values.type == ffi::BF16) return f(Type<BFloat16>());
  return ffi::Error::InvalidArgument("values must be float32 or bfloat16");
}

// Columns in 16 bits where they fit.
template <class F>
ffi::Error by_size(const Stored& a, F f) {
  return a.in_size <= 65536 ? f(Type<uint16_t>()) : f(Type<int32_t>());
}

struct CsrLayout {
  template <class F>
  static ffi::Error read(const Stored& a, F f) {
    return by_value(a, [&](auto* value) {
      auto with = [&](auto* column) {
        using T = std::remove_pointer_t<decltype(value)>;
        using C = std::remove_pointer_t<decltype(column)>;
        return f(Csr<T, C>(a.values.as<T>(), a.indices[0].as<C>(), a.indices[1].as<int32_t>(), a.out_size, a.in_size,
                           a.indices[0].count()));
      };
      if (a.indices[0].type == ffi::U16) return with(Type<uint16_t>());
      if (a.indices[0].type == ffi::S32) return with(Type<int32_t>());
      return ffi::Error::InvalidArgument("columns must be int32 or uint16");
    });
  }
};

struct BitmaskLayout {
  template <class F>
  static ffi::Error read(const Stored& a, F f) {
    return by_value(a, [&](auto* value) {
      return by_size(a, [&](auto* column) {
        using T = std::remove_pointer_t<decltype(value)>;
        using C = std::remove_pointer_t<decltype(column)>;
        return f(Bitmask<T, C>(a.values.as<T>(), a.indices[0].as<uint8_t>(), a.indices[0].size(-1), a.out_size,
                               a.in_size, a.values.count()));
      });
    });
  }
};

struct NmLayout {
  template <class F>
  static ffi::Error read(const Stored& a, F f) {
    const int32_t* pattern = a.indices[1].as<int32_t>();  // n, m
    if (pattern[0] < 1 || pattern[1] < pattern[0] || pattern[1] > 256 ||
        a.values.size(-1) != a.in_size / pattern[1] * pattern[0])
      return ffi::Error::InvalidArgument("n and m must be those of the values");
    return by_value(a, [&](auto* value) {
      return by_size(a, [&](auto* column) {
        using T = std::remove_pointer_t<decltype(value)>;
        using C = std::remove_pointer_t<decltype(column)>;
        return f(Nm<T, C>(a.values.as<T>(), a.indices[0].as<uint8_t>(), a.indices[0].size(-1), pattern[0], pattern[1],
                          a.out_size, a.in_size));
      });
    });
  }
};

struct FanInLayout {
  template <class F>
  static ffi::Error read(const Stored& a, F f) {
    return by_value(a, [&](auto* value) {
      auto with = [&](auto* index, auto* column) {
        using T = std::remove_pointer_t<decltype(value)>;
        using I = std::remove_pointer_t<decltype(index)>;
        using C = std::remove_pointer_t<decltype(column)>;
        return f(FanIn<T, I, C>(a.values.as<T>(), a.indices[0].as<I>(), a.values.size(-2), a.out_size, a.in_size));
      };
      if (a.indices[0].type == ffi::U8) return with(Type<uint8_t>(), Type<uint16_t>());
      if (a.indices[0].type == ffi::U16) return with(Type<uint16_t>(), Type<uint16_t>());
      if (a.indices[0].type == ffi::S32) return with(Type<int32_t>(), Type<int32_t>());
      return ffi::Error::InvalidArgument("columns must be uint8, uint16 or int32");
    });
  }
};

struct BlockLayout {
  template <class F>
  static ffi::Error read(const Stored& a, F f) {
    auto indices = [](const Array& array) { return Indices{array.data, int64_t(ffi::ByteWidth(array.type))}; };
    return by_value(a, [&](auto* value) {
      return by_size(a, [&](auto* column) {
        using T = std::remove_pointer_t<decltype(value)>;
        using C = std::remove_pointer_t<decltype(column)>;
        return f(Blocks<T, C>(a.values.as<T>(), indices(a.indices[0]), indices(a.indices[1]), a.values.size(-3),
                              a.values.size(-2), a.values.size(-1), a.out_size, a.in_size));
      });
    });
  }
};

enum class Operation { kProduct, kTransposed, kSampled };

// Arguments: the values (but for samples), the arrays of indices, then `y` for samples, then the dense array.
template <class Layout, Operation kOperation>
ffi::Error call(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> out) {
  constexpr bool kIsSampled = kOperation == Operation::kSampled;
  Array arrays[5];
  const int64_t count = args.size(), indices = count - 2;
  if (count < 3 || indices > 2) return ffi::Error::InvalidArgument("so many arrays are not taken");
  for (int64_t i = 0; i < count; ++i) {
    auto buffer = args.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) return buffer.error();
    arrays[i] = Array(*buffer);
  }
  const Array result(*out), dense = arrays[count - 1];
  Stored a;
  a.values = kIsSampled ? result : arrays[0];
  for (int64_t i = 0; i < indices; ++i) a.indices[i] = arrays[kIsSampled ? i : i + 1];
  if (kIsSampled) a.values.data = nullptr;
  a.out_size = (kOperation == Operation::kProduct ? result : kIsSampled ? arrays[count - 2] : dense).size(-1);
  a.in_size = (kOperation == Operation::kTransposed ? result : dense).size(-1);

  const Call machine(pool);
  auto run = [&](const auto& source) {
    if constexpr (kOperation == Operation::kProduct)
      return product(source, dense.size(-2), dense.dense(), result.dense(), machine);
    else if constexpr (kOperation == Operation::kTransposed)
      return transposed_product(source, dense.size(-2), dense.dense(), result.dense(), machine);
    else
      return sampled_product(source, dense.size(-2), arrays[count - 2].dense(), dense.dense(), result.data, machine);
  };
  return Layout::read(a, [&](const auto& source) {
    const typename std::decay_t<decltype(source)>::Base& base = source;
    if (!run(base))
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to work in");
    if (source.is_wrong)
      return ffi::Error::InvalidArgument("columns must be below the size of the other factor, row pointers in order");
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace eqsparse

#define EQSPARSE_EXPORT(name, layout, operation)              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                \
      name, (eqsparse::call<eqsparse::layout, eqsparse::Operation::operation>), \
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<ffi::AnyBuffer>())

#define EQSPARSE_EXPORT_LAYOUT(name, layout)                              \
  EQSPARSE_EXPORT(name, layout, kProduct);              \
  EQSPARSE_EXPORT(name##_transposed, layout, kTransposed); \
  EQSPARSE_EXPORT(name##_sampled, layout, kSampled)

EQSPARSE_EXPORT_LAYOUT(eqsparse_csr, CsrLayout);
EQSPARSE_EXPORT_LAYOUT(eqsparse_bitmask, BitmaskLayout);
EQSPARSE_EXPORT_LAYOUT(eqsparse_nm, NmLayout);
EQSPARSE_EXPORT_LAYOUT(eqsparse_fan_in, FanInLayout);
EQSPARSE_EXPORT_LAYOUT(eqsparse_block, BlockLayout);
