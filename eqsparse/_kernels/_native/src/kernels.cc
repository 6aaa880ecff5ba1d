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

ffi::Error done(bool had_memory) {
  return had_memory ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory to work in");
}

Dense dense(const ffi::AnyBuffer& buffer) {
  return {buffer.untyped_data(), buffer.dimensions()[1], buffer.element_type() == ffi::BF16};
}

// Calls `f` with a CSR matrix.
template <class F>
ffi::Error with_csr(const void* values, ffi::DataType type, const ffi::AnyBuffer& columns,
                    const ffi::AnyBuffer& pointers, int64_t in_size, F f) {
  auto make = [&](auto* value, auto* column) {
    using T = std::remove_pointer_t<decltype(value)>;
    using C = std::remove_pointer_t<decltype(column)>;
    return f(Csr<T, C>(static_cast<const T*>(values), static_cast<const C*>(columns.untyped_data()),
                       static_cast<const int32_t*>(pointers.untyped_data()), pointers.element_count() - 1, in_size,
                       columns.element_count()));
  };
  auto by_column = [&](auto* value) {
    if (columns.element_type() == ffi::S32) return make(value, static_cast<int32_t*>(nullptr));
    if (columns.element_type() == ffi::U16) return make(value, static_cast<uint16_t*>(nullptr));
    return ffi::Error::InvalidArgument("columns must be int32 or uint16");
  };
  if (type == ffi::F32) return by_column(static_cast<float*>(nullptr));
  if (type == ffi::BF16) return by_column(static_cast<BFloat16*>(nullptr));
  return ffi::Error::InvalidArgument("values must be float32 or bfloat16");
}

ffi::Error csr_product(ffi::ThreadPool pool, ffi::AnyBuffer values,
                       ffi::AnyBuffer columns, ffi::AnyBuffer pointers, ffi::AnyBuffer x,
                       ffi::Result<ffi::AnyBuffer> y) {
  return with_csr(values.untyped_data(), x.element_type(), columns, pointers, dense(x).size, [&](const auto& a) {
    return done(product(a, x.dimensions()[0], dense(x), dense(*y), Call(pool)));
  });
}

ffi::Error csr_transposed(ffi::ThreadPool pool, ffi::AnyBuffer values,
                          ffi::AnyBuffer columns, ffi::AnyBuffer pointers, ffi::AnyBuffer y,
                          ffi::Result<ffi::AnyBuffer> x) {
  return with_csr(values.untyped_data(), y.element_type(), columns, pointers, dense(*x).size, [&](const auto& a) {
    return done(transposed_product(a, y.dimensions()[0], dense(y), dense(*x), Call(pool)));
  });
}

ffi::Error csr_sampled(ffi::ThreadPool pool, ffi::AnyBuffer columns,
                       ffi::AnyBuffer pointers, ffi::AnyBuffer y, ffi::AnyBuffer x,
                       ffi::Result<ffi::AnyBuffer> samples) {
  return with_csr(nullptr, x.element_type(), columns, pointers, dense(x).size, [&](const auto& a) {
    return done(sampled_product(a, x.dimensions()[0], dense(y), dense(x), samples->untyped_data(),
                                Call(pool)));
  });
}

}  // namespace
}  // namespace eqsparse

#define EQSPARSE_EXPORT(name, function)                                                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                                                                  \
                                ffi::Ffi::Bind()                                                                 \
                                    .Ctx<ffi::ThreadPool>()                                                      \
                                    .Arg<ffi::AnyBuffer>()                                                       \
                                    .Arg<ffi::AnyBuffer>()                                                       \
                                    .Arg<ffi::AnyBuffer>()                                                       \
                                    .Arg<ffi::AnyBuffer>()                                                       \
                                    .Ret<ffi::AnyBuffer>())

EQSPARSE_EXPORT(eqsparse_csr, eqsparse::csr_product);
EQSPARSE_EXPORT(eqsparse_csr_transposed, eqsparse::csr_transposed);
EQSPARSE_EXPORT(eqsparse_csr_sampled, eqsparse::csr_sampled);
