// The products as XLA calls them. By its interface in C: that in C++ alone takes as long to compile as all the rest.

#include "images.h"
#include "layouts.h"
#include "product.h"
#include "xla/ffi/api/c_api.h"

namespace eqsparse {
namespace {

XLA_FFI_Error* error(const XLA_FFI_Api* api, XLA_FFI_Error_Code code, const char* message) {
  XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message, code};
  return api->XLA_FFI_Error_Create(&args);
}

bool is_error(const XLA_FFI_Api* api, XLA_FFI_Error* error) {
  if (!error) return false;
  XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
  api->XLA_FFI_Error_Destroy(&args);
  return true;
}

// XLA's threads. Its allocator for scratch does not serve CPUs, so memory comes from the system.
class Call final : public Machine {
 public:
  explicit Call(const XLA_FFI_CallFrame& frame) : api_(frame.api), ctx_(frame.ctx) {}

  int64_t threads() const override {
    int64_t threads = 0;
    XLA_FFI_ThreadPool_NumThreads_Args args{XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, ctx_, &threads};
    return is_error(api_, api_->XLA_FFI_ThreadPool_NumThreads(&args)) ? 1 : threads;
  }

  void schedule(Task task) const override {
    auto run = [](void* data) {
      const std::unique_ptr<Task> task(static_cast<Task*>(data));
      (*task)();
    };
    Task* held = new (std::nothrow) Task(task);
    if (!held) return task();
    XLA_FFI_ThreadPool_Schedule_Args args{XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, ctx_, run, held};
    if (is_error(api_, api_->XLA_FFI_ThreadPool_Schedule(&args))) run(held);
  }

 private:
  const XLA_FFI_Api* api_;
  XLA_FFI_ExecutionContext* ctx_;
};

// An array as XLA passes it.
struct Array {
  void* data = nullptr;
  XLA_FFI_DataType type = XLA_FFI_DataType_INVALID;
  int64_t rank = 0;
  const int64_t* sizes = nullptr;

  Array() = default;
  explicit Array(const void* given) {
    const XLA_FFI_Buffer& buffer = *static_cast<const XLA_FFI_Buffer*>(given);
    data = buffer.data, type = buffer.dtype, rank = buffer.rank, sizes = buffer.dims;
  }

  int64_t size(int64_t axis) const { return sizes[rank + axis]; }

  int64_t count() const {
    int64_t count = 1;
    for (int64_t axis = 0; axis < rank; ++axis) count *= sizes[axis];
    return count;
  }

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }

  bool is_half() const { return type == XLA_FFI_DataType_BF16; }
  bool is_float() const { return type == XLA_FFI_DataType_F32 || is_half(); }
  Dense dense() const { return {data, size(-1), is_half()}; }

  // Of indices; 0 for other types.
  int64_t itemsize() const {
    if (type == XLA_FFI_DataType_U8) return 1;
    if (type == XLA_FFI_DataType_U16) return 2;
    return type == XLA_FFI_DataType_S32 ? 4 : 0;
  }
};

// A stored matrix: its values (null pointers where only places are asked for), and arrays that tell where they are.
struct Stored {
  Array values, indices[2];
  int64_t out_size, in_size;

  Numbers numbers() const { return {values.data, values.is_half()}; }
  Indices at(int i) const { return {indices[i].data, indices[i].itemsize()}; }
};

// Each calls `f` with the matrix, or returns what is wrong with its arrays.
using Use = std::function<const char*(const Source&)>;
using Read = const char*(const Stored&, const Use& f);

const char* const kWrongSizes = "indices must be as many as the values and the sizes of the matrix ask for";

const char* read_csr(const Stored& a, const Use& f) {
  const int64_t itemsize = a.at(0).itemsize;
  if (itemsize < 2 || a.at(1).itemsize != 4) return "columns must be int32 or uint16, row pointers int32";
  if (a.indices[1].count() != a.out_size + 1 || a.indices[0].count() != a.values.count()) return kWrongSizes;
  return f(Csr(a.numbers(), {a.indices[0].data, itemsize == 4}, a.indices[1].as<int32_t>(), a.out_size, a.in_size,
               a.indices[0].count()));
}

const char* read_bitmask(const Stored& a, const Use& f) {
  if (a.at(0).itemsize != 1 || a.indices[0].count() != a.out_size * ((a.in_size + 7) / 8)) return kWrongSizes;
  return f(Bitmask(a.numbers(), a.indices[0].as<uint8_t>(), a.indices[0].size(-1), a.out_size, a.in_size,
                   a.values.count()));
}

const char* read_nm(const Stored& a, const Use& f) {
  const int64_t n = a.indices[1].as<int32_t>()[0], m = a.indices[1].as<int32_t>()[1];
  if (n < 1 || m < n || m > 256 || a.values.size(-1) != a.in_size / m * n)
    return "n and m must be those of the values";
  int64_t width = 1;
  while ((int64_t(1) << width) < m) ++width;
  const int64_t kept = a.in_size / m * n;
  if (a.at(0).itemsize != 1 || a.values.count() != a.out_size * kept ||
      a.indices[0].count() != a.out_size * ((kept + 7) / 8) * width)
    return kWrongSizes;
  return f(Nm(a.numbers(), a.indices[0].as<uint8_t>(), a.indices[0].size(-1), n, m, a.out_size, a.in_size));
}

const char* read_fan_in(const Stored& a, const Use& f) {
  if (!a.at(0).itemsize) return "columns must be uint8, uint16 or int32";
  if (a.indices[0].count() != a.values.count() || a.values.size(-1) != a.out_size) return kWrongSizes;
  return f(FanIn(a.numbers(), a.at(0), a.values.size(-2), a.out_size, a.in_size));
}

const char* read_blocks(const Stored& a, const Use& f) {
  if (!a.at(0).itemsize || !a.at(1).itemsize) return "rows and columns must be uint8, uint16 or int32";
  const int64_t blocks = a.values.size(-3);
  if (a.indices[0].count() != blocks || a.indices[1].count() != blocks) return kWrongSizes;
  return f(Blocks(a.numbers(), a.at(0), a.at(1), a.values.size(-3), a.values.size(-2), a.values.size(-1), a.out_size,
                  a.in_size));
}

enum class Operation { kProduct, kTransposed, kSampled, kConvolution };

const char* const kNoMemory = "no memory to work in";
const char* const kWrongPlaces = "indices must be places of the matrix, in order: columns below the size of the other factor";

template <class T>
bool convolution(const Source& source, int64_t images, const Window& window, const Array& x, const Array& y,
                 const Machine& machine) {
  const Images<T> from(x.data, source.in_size / window.taps(), window), to(y.data, source.out_size, window);
  return product(source, images * window.outputs(), from, to, machine);
}

// Arguments: the values, the arrays of indices, the window, then the images.
const char* run_convolution(const XLA_FFI_CallFrame& frame, Read* read) {
  Array arrays[5];
  const int64_t count = frame.args.size;
  if (count < 4 || count > 5 || frame.rets.size != 1) return "so many arrays are not taken";
  for (int64_t i = 0; i < count; ++i) arrays[i] = Array(frame.args.args[i]);
  const Array result(frame.rets.rets[0]), x = arrays[count - 1], numbers = arrays[count - 2];
  Window window;
  int64_t sizes[sizeof(window) / sizeof(int64_t)];
  if (numbers.type != XLA_FFI_DataType_S32 || numbers.count() * sizeof(int64_t) != sizeof(window))
    return "a window must be 18 numbers of int32";
  for (int64_t i = 0; i < numbers.count(); ++i) sizes[i] = numbers.as<int32_t>()[i];
  std::memcpy(&window, sizes, sizeof(window));
  Stored a;
  a.values = arrays[0];
  for (int64_t i = 0; i < count - 3; ++i) a.indices[i] = arrays[i + 1];
  const int64_t inputs = window.inputs(), outputs = window.outputs(), taps = window.taps();
  if (inputs < 1 || outputs < 1 || taps < 1) return "a window must have sizes of 1 and more";
  if (!a.values.is_float() || !x.is_float() || result.is_half() != x.is_half())
    return "values must be float32 or bfloat16";
  if (x.size(-1) % inputs || result.size(-1) % outputs) return "the window must be that of the images";
  a.in_size = x.size(-1) / inputs * taps;
  a.out_size = result.size(-1) / outputs;
  const Call machine(frame);
  return read(a, [&](const Source& source) -> const char* {
    const auto convolve = x.is_half() ? convolution<BFloat16> : convolution<float>;
    if (!convolve(source, x.size(-2), window, x, result, machine)) return kNoMemory;
    return source.is_wrong ? kWrongPlaces : nullptr;
  });
}

// Arguments: the values (but for samples), the arrays of indices, then `y` for samples, then the dense array.
const char* run(const XLA_FFI_CallFrame& frame, Read* read, Operation operation) {
  const bool is_sampled = operation == Operation::kSampled;
  Array arrays[5];
  const int64_t count = frame.args.size, indices = count - 2;
  if (count < 3 || indices > 2 || frame.rets.size != 1) return "so many arrays are not taken";
  for (int64_t i = 0; i < count; ++i) arrays[i] = Array(frame.args.args[i]);
  const Array result(frame.rets.rets[0]), dense = arrays[count - 1];
  Stored a;
  a.values = is_sampled ? result : arrays[0];
  for (int64_t i = 0; i < indices; ++i) a.indices[i] = arrays[is_sampled ? i : i + 1];
  if (is_sampled) a.values.data = nullptr;
  const Array& other = is_sampled ? arrays[count - 2] : dense;
  if (!a.values.is_float() || !dense.is_float() || !other.is_float()) return "values must be float32 or bfloat16";
  a.out_size = (operation == Operation::kProduct ? result : other).size(-1);
  a.in_size = (operation == Operation::kTransposed ? result : dense).size(-1);

  const Call machine(frame);
  const int64_t batch = dense.size(-2);
  return read(a, [&](const Source& source) -> const char* {
    const bool ok =
        is_sampled ? sampled_product(source, batch, other.dense(), dense.dense(), result.data, machine)
        : operation == Operation::kProduct ? product(source, batch, dense.dense(), result.dense(), machine)
                                           : transposed_product(source, batch, dense.dense(), result.dense(), machine);
    if (!ok) return kNoMemory;
    return source.is_wrong ? kWrongPlaces : nullptr;
  });
}

XLA_FFI_Error* call(XLA_FFI_CallFrame* frame, Read* read, Operation operation) noexcept {
  if (frame->struct_size != XLA_FFI_CallFrame_STRUCT_SIZE)
    return error(frame->api, XLA_FFI_Error_Code_INVALID_ARGUMENT, "the kernels were compiled for another XLA");
  auto* extension = frame->extension_start;  // newer headers call its type otherwise
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {  // XLA asks what this was compiled for
    XLA_FFI_Metadata& metadata = *reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
    if (metadata.struct_size < XLA_FFI_Metadata_STRUCT_SIZE)
      return error(frame->api, XLA_FFI_Error_Code_INVALID_ARGUMENT, "the kernels were compiled for another XLA");
    metadata.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    metadata.traits = 0;
    metadata.state_type_id = XLA_FFI_UNKNOWN_TYPE_ID;
    return nullptr;
  }
  const char* wrong;
  try {
    wrong = operation == Operation::kConvolution ? run_convolution(*frame, read) : run(*frame, read, operation);
  } catch (const std::bad_alloc&) {  // where a layout counts, before there are helpers
    wrong = kNoMemory;
  }
  if (!wrong) return nullptr;
  const bool is_memory = wrong == kNoMemory;
  return error(frame->api, is_memory ? XLA_FFI_Error_Code_RESOURCE_EXHAUSTED : XLA_FFI_Error_Code_INVALID_ARGUMENT,
               wrong);
}

}  // namespace
}  // namespace eqsparse

#define EQSPARSE_EXPORT(name, read, operation)                                   \
  extern "C" XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) {                     \
    return eqsparse::call(frame, eqsparse::read, eqsparse::Operation::operation); \
  }

#define EQSPARSE_EXPORT_LAYOUT(name, read)             \
  EQSPARSE_EXPORT(name, read, kProduct)                \
  EQSPARSE_EXPORT(name##_transposed, read, kTransposed) \
  EQSPARSE_EXPORT(name##_sampled, read, kSampled)

EQSPARSE_EXPORT_LAYOUT(eqsparse_csr, read_csr)
EQSPARSE_EXPORT(eqsparse_csr_convolution, read_csr, kConvolution)
EQSPARSE_EXPORT_LAYOUT(eqsparse_bitmask, read_bitmask)
EQSPARSE_EXPORT_LAYOUT(eqsparse_nm, read_nm)
EQSPARSE_EXPORT_LAYOUT(eqsparse_fan_in, read_fan_in)
EQSPARSE_EXPORT_LAYOUT(eqsparse_block, read_blocks)
