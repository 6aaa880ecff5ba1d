// Images as a batch: for a convolution, each position of the result is an example of a product.
#pragma once

#include "strips.h"

namespace eqsparse {

constexpr int kAxes = 3;  // the most axes of an image

// Where a convolution looks. Images with fewer axes have size 1 along the first ones.
struct Window {
  int64_t in[kAxes], out[kAxes], kernel[kAxes], stride[kAxes], dilation[kAxes], before[kAxes];

  int64_t inputs() const { return in[0] * in[1] * in[2]; }
  int64_t outputs() const { return out[0] * out[1] * out[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// Lanes of a strip whose numbers lie one stride apart in memory.
struct Run {
  int64_t lane, count, at;
};

// Arrays of images, channels first, in float or bfloat16. An example is read as what its window meets, all channels of
// one tap of the kernel after those of another, and zeros outside; it is written as the channels at its position.
template <class T>
class Images final : public Examples {
 public:
  Images(void* data, int64_t channels, const Window& window)
      : data_(static_cast<T*>(data)), channels_(channels), window_(window) {}

  void read(int64_t example, int64_t examples, int64_t first, int64_t count, int64_t lanes,
            float* to) const override {
    int64_t images[kLanes], corners[kLanes][kAxes];
    for (int64_t lane = 0; lane < examples; ++lane) {
      int64_t place = (example + lane) % window_.outputs();
      images[lane] = (example + lane) / window_.outputs();
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        corners[lane][axis] = place % window_.out[axis] * window_.stride[axis] - window_.before[axis];
        place /= window_.out[axis];
      }
    }
    const int64_t plane = window_.inputs(), end = first + count;
    while (first < end) {
      const int64_t tap = first / channels_, stop = std::min(end, (tap + 1) * channels_);
      Run runs[kLanes];
      const int64_t found = runs_of(tap, images, corners, examples, runs);
      const bool is_full = found == 1 && runs[0].count == lanes;
      for (; first < stop; ++first, to += lanes) {
        if (!is_full) std::fill(to, to + lanes, 0.f);
        const T* channel = data_ + (first - tap * channels_) * plane;
        for (int64_t i = 0; i < found; ++i) copy(channel + runs[i].at, runs[i].count, to + runs[i].lane);
      }
    }
  }

  void write(int64_t example, int64_t examples, int64_t first, int64_t count, int64_t lanes,
             const float* from) const override {
    const int64_t plane = window_.outputs();
    for (int64_t lane = 0; lane < examples;) {
      const int64_t image = (example + lane) / plane, place = (example + lane) % plane;
      const int64_t next = std::min(examples, lane + plane - place);
      T* to = data_ + (image * channels_ + first) * plane + place;
      for (int64_t c = 0; c < count; ++c)
        for (int64_t k = lane; k < next; ++k) store(to + c * plane + (k - lane), from[c * lanes + k]);
      lane = next;
    }
  }

 private:
  T* const data_;
  const int64_t channels_;
  const Window& window_;

  int64_t step() const { return window_.stride[kAxes - 1]; }

  void copy(const T* from, int64_t count, float* to) const {
    const int64_t step = this->step();
    if (step == 1) for (int64_t k = 0; k < count; ++k) to[k] = to_float(from[k]);
    else for (int64_t k = 0; k < count; ++k) to[k] = to_float(from[k * step]);
  }

  // Where the lanes find their numbers for a tap, in channel 0, but for those whose window ends outside.
  int64_t runs_of(int64_t tap, const int64_t* images, const int64_t (*corners)[kAxes], int64_t examples,
                  Run* runs) const {
    int64_t moves[kAxes];
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      moves[axis] = tap % window_.kernel[axis] * window_.dilation[axis];
      tap /= window_.kernel[axis];
    }
    int64_t found = 0;
    for (int64_t lane = 0; lane < examples; ++lane) {
      int64_t at = images[lane] * channels_;
      bool is_inside = true;
      for (int axis = 0; axis < kAxes; ++axis) {
        const int64_t place = corners[lane][axis] + moves[axis];
        is_inside = is_inside && place >= 0 && place < window_.in[axis];
        at = at * window_.in[axis] + place;
      }
      if (!is_inside) continue;
      Run* last = runs + found - 1;
      if (found && last->lane + last->count == lane && last->at + last->count * step() == at) ++last->count;
      else runs[found++] = {lane, 1, at};
    }
    return found;
  }
};

}  // namespace eqsparse
