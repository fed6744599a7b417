// Convolution by oneDNN, and BatchNorm, ReLU and pooling around it, as XLA FFI handlers for CPUs.
//
// Images are NHWC, kernels HWIO; arrays are float32 or bfloat16 (T), sums float32. Work is divided
// into parts along the batch, which XLA's own threads and the caller take one by one; oneDNN runs
// on one thread in each. How many parts there are follows from shapes alone, and what they add up is
// added in their order, so bits do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Ints = ffi::Span<const int64_t>;

extern "C" int omp_get_max_threads(void);
extern "C" void omp_set_num_threads(int);

namespace {

// Threads.

// oneDNN's OpenMP on this thread alone, and as it was afterwards: other libraries use it too.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { if (before_ != 1) omp_set_num_threads(1); }
  ~OneThread() { if (before_ != 1) omp_set_num_threads(before_); }

 private:
  int before_;
};

// Calls body(0) ... body(parts - 1), each once, on the pool's threads and this one. This thread
// takes parts too, so that calls from within the pool cannot wait for each other.
void ForEach(ffi::ThreadPool& pool, int64_t parts, const std::function<void(int64_t)>& body) {
  struct Shared {
    std::atomic<int64_t> next{0}, left;
    std::mutex mutex;
    std::condition_variable done;
    std::exception_ptr error;
    const std::function<void(int64_t)>* body;
  };
  auto shared = std::make_shared<Shared>();
  shared->left = parts;
  shared->body = &body;
  auto work = [parts](const std::shared_ptr<Shared>& s) {
    OneThread one;
    for (int64_t part; (part = s->next++) < parts;) {
      try {
        (*s->body)(part);
      } catch (...) {
        std::lock_guard<std::mutex> lock(s->mutex);
        if (!s->error) s->error = std::current_exception();
      }
      if (--s->left == 0) {
        std::lock_guard<std::mutex> lock(s->mutex);
        s->done.notify_all();
      }
    }
  };
  const int64_t helpers = std::min<int64_t>(std::max<int64_t>(pool.num_threads(), 1), parts) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([shared, work] { work(shared); });
  work(shared);
  for (int spin = 0; spin < 2000 && shared->left != 0; ++spin) __builtin_ia32_pause();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->left == 0; });
  if (shared->error) std::rethrow_exception(shared->error);
}

// Into how many equal parts a batch is divided, each of at least so many examples.
int64_t PartsOf(int64_t batch, int64_t least) {
  int64_t parts = std::clamp<int64_t>(batch / least, 1, 32);
  while (batch % parts) --parts;
  return parts;
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

Range PartOf(int64_t count, int64_t parts, int64_t part) {
  return {count * part / parts, count * (part + 1) / parts};
}

// Memory of this thread that is used again by the next call.
char* Scratch(int slot, size_t bytes) {
  struct Free { void operator()(char* p) const { std::free(p); } };
  thread_local std::unique_ptr<char, Free> buffers[4];
  thread_local size_t sizes[4] = {0, 0, 0, 0};
  if (sizes[slot] < bytes) {
    buffers[slot].reset();
    sizes[slot] = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    char* fresh = static_cast<char*>(std::aligned_alloc(64, rounded));
    if (!fresh) throw std::bad_alloc();
    buffers[slot].reset(fresh);
    sizes[slot] = rounded;
  }
  return buffers[slot].get();
}

// Numbers.

struct BFloat16 { uint16_t bits; };

inline float ToFloat(float x) { return x; }
inline float ToFloat(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void Store(float* p, float x) { *p = x; }
inline void Store(BFloat16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // To nearest, ties to even.
  p->bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

// A NaN wins, as in lax.
inline float Rectified(float x) { return x > 0 || x != x ? x : 0; }

// Convolution.

struct Shape {
  int64_t n, h, w, c, out_h, out_w, o, kh, kw, stride_h, stride_w, top, left, bottom, right,
      dilate_h, dilate_w, groups;
  bool bf16;
  auto key() const {
    return std::make_tuple(n, h, w, c, out_h, out_w, o, kh, kw, stride_h, stride_w, top, left,
                           bottom, right, dilate_h, dilate_w, groups, bf16);
  }
};

enum Kind { kForward, kForwardBias, kForwardBiasRelu, kForwardRelu, kData, kWeights, kWeightsBias };

// A primitive for one size of part, with the layouts it wants.
struct Primitive {
  dnnl::primitive primitive;
  memory::desc image, weights, result;
  size_t scratch;
  bool has_bias;
};

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::stream& Stream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

memory::desc Images(int64_t n, int64_t h, int64_t w, int64_t c, bool bf16) {
  return {{n, c, h, w}, bf16 ? memory::data_type::bf16 : memory::data_type::f32,
          memory::format_tag::nhwc};
}

// HWIO, as [O, I, H, W] or [G, O/G, I/G, H, W].
memory::desc Weights(const Shape& s) {
  const int64_t i = s.c / s.groups, o = s.o / s.groups;
  const memory::data_type f32 = memory::data_type::f32;
  if (s.groups == 1)
    return {{s.o, i, s.kh, s.kw}, f32, {1, s.o, s.kw * i * s.o, i * s.o}};
  return {{s.groups, o, i, s.kh, s.kw}, f32, {o, 1, s.o, s.kw * i * s.o, i * s.o}};
}

std::shared_ptr<const Primitive> MakePrimitive(Kind kind, const Shape& s, int64_t n) {
  using namespace dnnl;
  const auto type = s.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc src = Images(n, s.h, s.w, s.c, s.bf16);
  const memory::desc dst = Images(n, s.out_h, s.out_w, s.o, s.bf16);
  const bool gradient = kind == kWeights || kind == kWeightsBias;
  const memory::desc given = Weights(s);
  const memory::desc weights(given.get_dims(), gradient ? memory::data_type::f32 : type,
                             memory::format_tag::any);
  const memory::desc no_bias;
  const memory::desc bias({s.o}, memory::data_type::f32, memory::format_tag::x);
  const bool with_bias = kind == kForwardBias || kind == kForwardBiasRelu || kind == kWeightsBias;
  const memory::dims strides{s.stride_h, s.stride_w}, dilates{s.dilate_h - 1, s.dilate_w - 1},
      low{s.top, s.left}, high{s.bottom, s.right};
  const auto algorithm = algorithm::convolution_direct;
  primitive_attr attr;
  attr.set_scratchpad_mode(scratchpad_mode::user);
  if (kind == kForwardBiasRelu || kind == kForwardRelu) {
    post_ops ops;
    ops.append_eltwise(algorithm::eltwise_relu, 0, 0);
    attr.set_post_ops(ops);
  }
  auto made = std::make_shared<Primitive>();
  made->has_bias = with_bias;
  const memory::desc w_forward(given.get_dims(), type, memory::format_tag::any);
  convolution_forward::primitive_desc forward(
      Engine(), prop_kind::forward_training, algorithm, src, w_forward, with_bias ? bias : no_bias,
      dst, strides, dilates, low, high,
      kind == kData || gradient ? primitive_attr() : attr);
  auto keep = [&](const auto& pd, const memory::desc& image, const memory::desc& w,
                  const memory::desc& result, dnnl::primitive primitive) {
    made->primitive = primitive;
    made->image = image, made->weights = w, made->result = result;
    made->scratch = pd.scratchpad_desc().get_size();
  };
  if (kind == kData) {
    convolution_backward_data::primitive_desc pd(Engine(), algorithm, src, weights, dst, strides,
                                                 dilates, low, high, forward, attr);
    keep(pd, dst, pd.weights_desc(), src, convolution_backward_data(pd));
  } else if (gradient) {
    convolution_backward_weights::primitive_desc pd(
        Engine(), algorithm, src, weights, with_bias ? bias : no_bias, dst, strides, dilates, low,
        high, forward, attr);
    keep(pd, src, pd.diff_weights_desc(), dst, convolution_backward_weights(pd));
  } else {
    keep(forward, src, forward.weights_desc(), dst, convolution_forward(forward));
  }
  return made;
}

std::shared_ptr<const Primitive> PrimitiveFor(Kind kind, const Shape& s, int64_t n) {
  using Key = std::tuple<int, int64_t, decltype(s.key())>;
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Primitive>> made;
  const Key key(kind, n, s.key());
  std::lock_guard<std::mutex> lock(mutex);
  auto& found = made[key];
  if (!found) {
    OneThread one;
    found = MakePrimitive(kind, s, n);
  }
  return found;
}

// The weights in the layout that a primitive wants, in this thread's memory.
memory Reordered(const memory::desc& given, const void* data, const memory::desc& wanted) {
  OneThread one;
  memory source(given, Engine(), const_cast<void*>(data));
  memory target(wanted, Engine(), Scratch(0, wanted.get_size()));
  dnnl::reorder(source, target).execute(Stream(), source, target);
  return target;
}

void Run(const Primitive& primitive, std::unordered_map<int, memory> args) {
  if (primitive.scratch) {
    const memory::desc md({static_cast<int64_t>(primitive.scratch)}, memory::data_type::u8,
                          memory::format_tag::x);
    args[DNNL_ARG_SCRATCHPAD] = memory(md, Engine(), Scratch(1, primitive.scratch));
  }
  primitive.primitive.execute(Stream(), args);
}

const char* At(const void* base, int64_t items, bool bf16) {
  return static_cast<const char*>(base) + items * (bf16 ? 2 : 4);
}

memory Wrap(const memory::desc& md, const void* data) {
  return memory(md, Engine(), const_cast<void*>(data));
}

void Forward(ffi::ThreadPool& pool, const Shape& s, Kind kind, const void* x, const float* w,
             const float* bias, void* y) {
  const int64_t parts = PartsOf(s.n, 8), n = s.n / parts;
  const auto p = PrimitiveFor(kind, s, n);
  const memory weights = Reordered(Weights(s), w, p->weights);
  ForEach(pool, parts, [&](int64_t part) {
    std::unordered_map<int, memory> args{
        {DNNL_ARG_SRC, Wrap(p->image, At(x, part * n * s.h * s.w * s.c, s.bf16))},
        {DNNL_ARG_WEIGHTS, weights},
        {DNNL_ARG_DST, Wrap(p->result, At(y, part * n * s.out_h * s.out_w * s.o, s.bf16))}};
    if (p->has_bias)
      args[DNNL_ARG_BIAS] = Wrap({{s.o}, memory::data_type::f32, memory::format_tag::x}, bias);
    Run(*p, args);
  });
}

void BackwardData(ffi::ThreadPool& pool, const Shape& s, const void* dy, const float* w, void* dx) {
  const int64_t parts = PartsOf(s.n, 8), n = s.n / parts;
  const auto p = PrimitiveFor(kData, s, n);
  const memory weights = Reordered(Weights(s), w, p->weights);
  ForEach(pool, parts, [&](int64_t part) {
    Run(*p, {{DNNL_ARG_DIFF_DST, Wrap(p->image, At(dy, part * n * s.out_h * s.out_w * s.o, s.bf16))},
             {DNNL_ARG_WEIGHTS, weights},
             {DNNL_ARG_DIFF_SRC, Wrap(p->result, At(dx, part * n * s.h * s.w * s.c, s.bf16))}});
  });
}

void BackwardWeights(ffi::ThreadPool& pool, const Shape& s, const void* x, const void* dy,
                     float* dw, float* db) {
  const int64_t parts = PartsOf(s.n, 32), n = s.n / parts;
  const auto p = PrimitiveFor(db ? kWeightsBias : kWeights, s, n);
  // Each part's gradient, weights and then bias, one after another in memory.
  const int64_t own = (p->weights.get_size() / 4 + 15) / 16 * 16;
  const int64_t stride = own + (db ? (s.o + 15) / 16 * 16 : 0);
  float* sums = reinterpret_cast<float*>(Scratch(2, parts * stride * 4));
  ForEach(pool, parts, [&](int64_t part) {
    float* mine = sums + part * stride;
    std::unordered_map<int, memory> args{
        {DNNL_ARG_SRC, Wrap(p->image, At(x, part * n * s.h * s.w * s.c, s.bf16))},
        {DNNL_ARG_DIFF_DST, Wrap(p->result, At(dy, part * n * s.out_h * s.out_w * s.o, s.bf16))},
        {DNNL_ARG_DIFF_WEIGHTS, Wrap(p->weights, mine)}};
    if (db)
      args[DNNL_ARG_DIFF_BIAS] =
          Wrap({{s.o}, memory::data_type::f32, memory::format_tag::x}, mine + own);
    Run(*p, args);
  });
  for (int64_t part = 1; part < parts; ++part) {
    const float* other = sums + part * stride;
    for (int64_t i = 0; i < stride; ++i) sums[i] += other[i];
  }
  OneThread one;
  memory source = Wrap(p->weights, sums), target = Wrap(Weights(s), dw);
  dnnl::reorder(source, target).execute(Stream(), source, target);
  if (db) std::copy(sums + own, sums + own + s.o, db);
}

// BatchNorm with the batch's statistics, ReLU, and a max-pool of windows that do not overlap.

struct Pool {
  int64_t n, h, w, c, ph, pw;
  int64_t out_h() const { return h / ph; }
  int64_t out_w() const { return w / pw; }
};

constexpr uint16_t kNobody = 65535;
constexpr int64_t kRows = 256;  // Rows of channels whose sum is taken in float32.

// Sums over rows [n, c], each part's and then all of them, the latter in float64.
template <typename T>
void Moments(ffi::ThreadPool& pool, const T* x, int64_t rows, int64_t c, float* mean, float* var) {
  const int64_t parts = std::clamp<int64_t>(rows / 4096, 1, 32);
  std::vector<double> sums(parts * 2 * c, 0.0);
  ForEach(pool, parts, [&](int64_t part) {
    const Range range = PartOf(rows, parts, part);
    double* total = &sums[part * 2 * c];
    float* __restrict sum = reinterpret_cast<float*>(Scratch(3, 2 * c * 4));
    float* __restrict square = sum + c;
    for (int64_t start = range.begin; start < range.end; start += kRows) {
      std::fill(sum, sum + 2 * c, 0.0f);
      for (int64_t row = start; row < std::min(start + kRows, range.end); ++row) {
        const T* __restrict p = x + row * c;
        for (int64_t i = 0; i < c; ++i) {
          const float value = ToFloat(p[i]);
          sum[i] += value;
          square[i] += value * value;
        }
      }
      for (int64_t i = 0; i < 2 * c; ++i) total[i] += sum[i];
    }
  });
  for (int64_t i = 0; i < c; ++i) {
    double sum = 0, square = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += sums[part * 2 * c + i];
      square += sums[part * 2 * c + c + i];
    }
    const double average = sum / rows;
    mean[i] = average;
    var[i] = std::max(square / rows - average * average, 0.0);
    if (square != square) var[i] = square;
  }
}

template <typename T>
void NormForward(ffi::ThreadPool& pool, const Pool& s, float epsilon, const T* x,
                 const float* scale, const float* bias, T* y, uint16_t* winner, float* mean,
                 float* var) {
  Moments(pool, x, s.n * s.h * s.w, s.c, mean, var);
  std::vector<float> slope(s.c), offset(s.c);
  for (int64_t i = 0; i < s.c; ++i) {
    slope[i] = scale[i] / std::sqrt(var[i] + epsilon);
    offset[i] = bias[i] - mean[i] * slope[i];
  }
  const int64_t c = s.c, out_h = s.out_h(), out_w = s.out_w();
  ForEach(pool, PartsOf(s.n, 4), [&](int64_t part) {
    const Range range = PartOf(s.n, PartsOf(s.n, 4), part);
    const float* __restrict a = slope.data();
    const float* __restrict b = offset.data();
    float* __restrict best = reinterpret_cast<float*>(Scratch(3, c * 4));
    for (int64_t n = range.begin; n < range.end; ++n)
      for (int64_t i = 0; i < out_h; ++i)
        for (int64_t j = 0; j < out_w; ++j) {
          const int64_t place = ((n * out_h + i) * out_w + j) * c;
          uint16_t* __restrict w = winner + place;
          for (int64_t u = 0; u < s.ph; ++u)
            for (int64_t v = 0; v < s.pw; ++v) {
              const T* __restrict p = x + ((n * s.h + i * s.ph + u) * s.w + j * s.pw + v) * c;
              const uint16_t position = u * s.pw + v;
              if (!position) {
                for (int64_t k = 0; k < c; ++k) {
                  best[k] = ToFloat(p[k]) * a[k] + b[k];
                  w[k] = 0;
                }
              } else {
                for (int64_t k = 0; k < c; ++k) {
                  const float value = ToFloat(p[k]) * a[k] + b[k];
                  const bool larger = (value > best[k]) | ((value != value) & (best[k] == best[k]));
                  best[k] = larger ? value : best[k];
                  w[k] = larger ? position : w[k];
                }
              }
            }
          // Rectified: nobody gets a gradient.
          for (int64_t k = 0; k < c; ++k) {
            Store(y + place + k, Rectified(best[k]));
            w[k] = best[k] > 0 ? w[k] : kNobody;
          }
        }
  });
}

// The inner loops, over channels: pointers that are known to be apart make them vectors.

template <typename T>
inline void AddGradient(int64_t c, uint16_t position, const uint16_t* __restrict winner,
                        const T* __restrict dy, const T* __restrict x,
                        const float* __restrict mean, float* __restrict sum,
                        float* __restrict product) {
  for (int64_t k = 0; k < c; ++k) {
    const float g = winner[k] == position ? ToFloat(dy[k]) : 0.0f;
    sum[k] += g;
    product[k] += g * (ToFloat(x[k]) - mean[k]);
  }
}

template <typename T>
inline void GiveGradient(int64_t c, uint16_t position, const uint16_t* __restrict winner,
                         const T* __restrict dy, const T* __restrict x, const float* __restrict a,
                         const float* __restrict m, const float* __restrict b, T* __restrict dx) {
  for (int64_t k = 0; k < c; ++k) {
    const float g = winner[k] == position ? ToFloat(dy[k]) : 0.0f;
    Store(dx + k, a[k] * g + (ToFloat(x[k]) * m[k] + b[k]));
  }
}

// `relu`: only where the result y of the pool is positive.
template <bool relu, typename T>
inline void PutWinners(int64_t c, uint16_t position, const uint16_t* __restrict winner,
                       const T* __restrict y, const T* __restrict dy, T* __restrict dx) {
  for (int64_t k = 0; k < c; ++k) {
    const bool gets = (winner[k] == position) & (!relu | (ToFloat(y[k]) > 0));
    Store(dx + k, gets ? ToFloat(dy[k]) : 0.0f);
  }
}

template <bool relu, typename T>
inline void AddWinners(int64_t c, uint16_t position, const uint16_t* __restrict winner,
                       const T* __restrict y, const T* __restrict dy, float* __restrict sum) {
  for (int64_t k = 0; k < c; ++k) {
    const bool gets = (winner[k] == position) & (!relu | (ToFloat(y[k]) > 0));
    sum[k] += gets ? ToFloat(dy[k]) : 0.0f;
  }
}

template <typename T>
void NormBackward(ffi::ThreadPool& pool, const Pool& s, float epsilon, const T* x,
                  const float* scale, const float* mean, const float* var, const uint16_t* winner,
                  const T* dy, T* dx, float* dscale, float* dbias) {
  const int64_t c = s.c, out_h = s.out_h(), out_w = s.out_w(), parts = PartsOf(s.n, 4);
  std::vector<double> sums(parts * 2 * c, 0.0);
  // Sums of the gradient, and of the gradient times x.
  ForEach(pool, parts, [&](int64_t part) {
    const Range range = PartOf(s.n, parts, part);
    double* total = &sums[part * 2 * c];
    float* __restrict sum = reinterpret_cast<float*>(Scratch(3, 2 * c * 4));
    float* __restrict product = sum + c;
    for (int64_t n = range.begin; n < range.end; ++n)
      for (int64_t i = 0; i < out_h; ++i) {
        std::fill(sum, sum + 2 * c, 0.0f);
        for (int64_t j = 0; j < out_w; ++j) {
          const int64_t place = ((n * out_h + i) * out_w + j) * c;
          for (int64_t u = 0; u < s.ph; ++u)
            for (int64_t v = 0; v < s.pw; ++v) {
              AddGradient(c, u * s.pw + v, winner + place, dy + place,
                          x + ((n * s.h + i * s.ph + u) * s.w + j * s.pw + v) * c, mean, sum,
                          product);
            }
        }
        for (int64_t k = 0; k < 2 * c; ++k) total[k] += sum[k];
      }
  });
  std::vector<float> slope(c), line(c), offset(c);
  const double count = static_cast<double>(s.n) * s.h * s.w;
  for (int64_t k = 0; k < c; ++k) {
    double sum = 0, product = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += sums[part * 2 * c + k];
      product += sums[part * 2 * c + c + k];
    }
    const double inverse = 1 / std::sqrt(static_cast<double>(var[k]) + epsilon);
    dbias[k] = sum;
    dscale[k] = product * inverse;
    // dx = slope * g + line * x + offset.
    slope[k] = scale[k] * inverse;
    line[k] = -scale[k] * inverse * inverse * inverse * product / count;
    offset[k] = -scale[k] * inverse * sum / count - line[k] * mean[k];
  }
  ForEach(pool, parts, [&](int64_t part) {
    const Range range = PartOf(s.n, parts, part);
    const float* __restrict a = slope.data();
    const float* __restrict m = line.data();
    const float* __restrict b = offset.data();
    for (int64_t n = range.begin; n < range.end; ++n)
      for (int64_t h = 0; h < s.h; ++h)
        for (int64_t w = 0; w < s.w; ++w) {
          const int64_t here = ((n * s.h + h) * s.w + w) * c, i = h / s.ph, j = w / s.pw;
          const T* __restrict p = x + here;
          if (i >= out_h || j >= out_w) {  // No window reaches here.
            T* __restrict target = dx + here;
            for (int64_t k = 0; k < c; ++k) Store(target + k, ToFloat(p[k]) * m[k] + b[k]);
            continue;
          }
          const int64_t place = ((n * out_h + i) * out_w + j) * c;
          GiveGradient(c, (h % s.ph) * s.pw + w % s.pw, winner + place, dy + place, p, a, m, b,
                       dx + here);
        }
  });
}

// Pooling with any windows, strides and padding.

struct Window {
  int64_t n, h, w, c, out_h, out_w, kh, kw, stride_h, stride_w, top, left;
  Range Rows(int64_t i) const {
    const int64_t first = i * stride_h - top;
    return {std::max<int64_t>(first, 0), std::min(first + kh, h)};
  }
  Range Columns(int64_t j) const {
    const int64_t first = j * stride_w - left;
    return {std::max<int64_t>(first, 0), std::min(first + kw, w)};
  }
  int64_t position(int64_t i, int64_t j, int64_t row, int64_t column) const {
    return (row - (i * stride_h - top)) * kw + column - (j * stride_w - left);
  }
};

template <typename T>
void MaxForward(ffi::ThreadPool& pool, const Window& s, const T* x, T* y, uint16_t* winner) {
  ForEach(pool, PartsOf(s.n, 4), [&](int64_t part) {
    const Range range = PartOf(s.n, PartsOf(s.n, 4), part);
    float* __restrict best = reinterpret_cast<float*>(Scratch(3, s.c * 4));
    for (int64_t n = range.begin; n < range.end; ++n)
      for (int64_t i = 0; i < s.out_h; ++i)
        for (int64_t j = 0; j < s.out_w; ++j) {
          const int64_t place = ((n * s.out_h + i) * s.out_w + j) * s.c;
          uint16_t* __restrict w = winner + place;
          T* __restrict target = y + place;
          std::fill(best, best + s.c, -std::numeric_limits<float>::infinity());
          std::fill(w, w + s.c, kNobody);  // Of a window that lies in the padding.
          const Range rows = s.Rows(i), columns = s.Columns(j);
          for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t column = columns.begin; column < columns.end; ++column) {
              const T* __restrict p = x + ((n * s.h + row) * s.w + column) * s.c;
              const uint16_t position = s.position(i, j, row, column);
              if (row == rows.begin && column == columns.begin) {
                for (int64_t k = 0; k < s.c; ++k) {
                  best[k] = ToFloat(p[k]);
                  w[k] = position;
                }
                continue;
              }
              for (int64_t k = 0; k < s.c; ++k) {  // A NaN is larger, and the first stays.
                const float value = ToFloat(p[k]);
                const bool larger = (value > best[k]) | ((value != value) & (best[k] == best[k]));
                best[k] = larger ? value : best[k];
                w[k] = larger ? position : w[k];
              }
            }
          for (int64_t k = 0; k < s.c; ++k) Store(target + k, best[k]);
        }
  });
}

template <bool relu, typename T>
void MaxBackward(ffi::ThreadPool& pool, const Window& s, const uint16_t* winner, const T* y,
                 const T* dy, T* dx) {
  const bool apart = s.stride_h >= s.kh && s.stride_w >= s.kw;  // Each pixel has one window at most.
  ForEach(pool, PartsOf(s.n, 4), [&](int64_t part) {
    const Range range = PartOf(s.n, PartsOf(s.n, 4), part);
    const int64_t size = s.h * s.w * s.c;
    float* sum = apart ? nullptr : reinterpret_cast<float*>(Scratch(3, size * 4));
    for (int64_t n = range.begin; n < range.end; ++n) {
      T* target = dx + n * size;
      if (apart) std::memset(target, 0, size * sizeof(T));
      else std::fill(sum, sum + size, 0.0f);
      for (int64_t i = 0; i < s.out_h; ++i)
        for (int64_t j = 0; j < s.out_w; ++j) {
          const int64_t place = ((n * s.out_h + i) * s.out_w + j) * s.c;
          const Range rows = s.Rows(i), columns = s.Columns(j);
          for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t column = columns.begin; column < columns.end; ++column) {
              const uint16_t position = s.position(i, j, row, column);
              const int64_t here = (row * s.w + column) * s.c;
              if (apart)
                PutWinners<relu>(s.c, position, winner + place, y + place, dy + place,
                                 target + here);
              else
                AddWinners<relu>(s.c, position, winner + place, y + place, dy + place, sum + here);
            }
        }
      if (!apart)
        for (int64_t k = 0; k < size; ++k) Store(target + k, sum[k]);
    }
  });
}

template <typename T>
void MeanForward(ffi::ThreadPool& pool, const Window& s, const T* x, T* y) {
  const float share = 1.0f / (s.kh * s.kw);
  ForEach(pool, PartsOf(s.n, 4), [&](int64_t part) {
    const Range range = PartOf(s.n, PartsOf(s.n, 4), part);
    float* __restrict sum = reinterpret_cast<float*>(Scratch(3, s.c * 4));
    for (int64_t n = range.begin; n < range.end; ++n)
      for (int64_t i = 0; i < s.out_h; ++i)
        for (int64_t j = 0; j < s.out_w; ++j) {
          std::fill(sum, sum + s.c, 0.0f);
          const Range rows = s.Rows(i), columns = s.Columns(j);
          for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t column = columns.begin; column < columns.end; ++column) {
              const T* __restrict p = x + ((n * s.h + row) * s.w + column) * s.c;
              for (int64_t k = 0; k < s.c; ++k) sum[k] += ToFloat(p[k]);
            }
          T* target = y + ((n * s.out_h + i) * s.out_w + j) * s.c;
          for (int64_t k = 0; k < s.c; ++k) Store(target + k, sum[k] * share);
        }
  });
}

template <typename T>
void MeanBackward(ffi::ThreadPool& pool, const Window& s, const T* dy, T* dx) {
  const float share = 1.0f / (s.kh * s.kw);
  ForEach(pool, PartsOf(s.n, 4), [&](int64_t part) {
    const Range range = PartOf(s.n, PartsOf(s.n, 4), part);
    const int64_t size = s.h * s.w * s.c;
    float* __restrict sum = reinterpret_cast<float*>(Scratch(3, size * 4));
    for (int64_t n = range.begin; n < range.end; ++n) {
      std::fill(sum, sum + size, 0.0f);
      for (int64_t i = 0; i < s.out_h; ++i)
        for (int64_t j = 0; j < s.out_w; ++j) {
          const T* g = dy + ((n * s.out_h + i) * s.out_w + j) * s.c;
          const Range rows = s.Rows(i), columns = s.Columns(j);
          for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t column = columns.begin; column < columns.end; ++column)
              for (int64_t k = 0; k < s.c; ++k)
                sum[(row * s.w + column) * s.c + k] += ToFloat(g[k]) * share;
        }
      for (int64_t k = 0; k < size; ++k) Store(dx + n * size + k, sum[k]);
    }
  });
}

// Dropout.

constexpr uint32_t Rotated(uint32_t x, int by) { return x << by | x >> (32 - by); }

// jax.random.bits of a threefry key: bits of numbers begin, begin + 1, ... (Salmon et al., 2011).
void Threefry(const uint32_t key[2], uint64_t begin, int64_t count, uint32_t* __restrict bits) {
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda};
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t number = begin + i;
    uint32_t a = static_cast<uint32_t>(number >> 32) + keys[0];
    uint32_t b = static_cast<uint32_t>(number) + keys[1];
#pragma GCC unroll 5
    for (uint32_t group = 0; group < 5; ++group) {
      const int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
#pragma GCC unroll 4
      for (int round = 0; round < 4; ++round) {
        a += b;
        b = Rotated(b, turns[group % 2][round]) ^ a;
      }
      a += keys[(group + 1) % 3];
      b += keys[(group + 2) % 3] + group + 1;
    }
    bits[i] = a ^ b;
  }
}

// Rows of features; two features, half a row apart, share a number's 32 bits.
template <typename T>
void Drop(ffi::ThreadPool& pool, int64_t rows, int64_t features, const uint32_t* key,
          uint32_t below, float scale, const T* x, T* y) {
  const int64_t words = (features + 1) / 2, parts = std::clamp<int64_t>(rows * features / 8192, 1, 32);
  ForEach(pool, parts, [&](int64_t part) {
    const Range range = PartOf(rows, parts, part);
    constexpr int64_t kWords = 4096;  // Random words at a time.
    const int64_t chunk = std::max<int64_t>(kWords / words, 1);
    uint32_t* bits = reinterpret_cast<uint32_t*>(Scratch(3, chunk * words * 4));
    for (int64_t start = range.begin; start < range.end; start += chunk) {
      const int64_t here = std::min(chunk, range.end - start);
      Threefry(key, static_cast<uint64_t>(start) * words, here * words, bits);
      for (int64_t row = 0; row < here; ++row) {
        const uint32_t* __restrict drawn = bits + row * words;
        const T* __restrict from = x + (start + row) * features;
        T* __restrict to = y + (start + row) * features;
        for (int64_t k = 0; k < words; ++k)
          Store(to + k, (drawn[k] & 0xffff) < below ? ToFloat(from[k]) * scale : 0.0f);
        for (int64_t k = words; k < features; ++k)
          Store(to + k, (drawn[k - words] >> 16) < below ? ToFloat(from[k]) * scale : 0.0f);
      }
    }
  });
}

// What XLA calls.

ffi::Error Guarded(const std::function<void()>& work) {
  try {
    work();
    return ffi::Error::Success();
  } catch (const dnnl::error& error) {
    return ffi::Error(ffi::ErrorCode::kInternal,
                      std::string("oneDNN cannot compute this: ") + error.what());
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
}

bool IsHalf(const ffi::AnyBuffer& b) { return b.element_type() == ffi::DataType::BF16; }

// Calls `run` with null pointers of the arrays' type.
template <typename F>
void Typed(bool bf16, F run) {
  if (bf16) run(static_cast<BFloat16*>(nullptr));
  else run(static_cast<float*>(nullptr));
}

using Array = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;
using Floats = ffi::Buffer<ffi::DataType::F32>;
using FloatsResult = ffi::ResultBuffer<ffi::DataType::F32>;

Shape ShapeOf(ffi::Span<const int64_t> image, ffi::Span<const int64_t> kernel,
              ffi::Span<const int64_t> result, Ints how, bool bf16) {
  return {image[0], image[1], image[2], image[3], result[1], result[2], result[3], kernel[0],
          kernel[1], how[0], how[1], how[2], how[3], how[4], how[5], how[6], how[7], how[8], bf16};
}

void Zero(void* data, size_t bytes) { if (bytes) std::memset(data, 0, bytes); }

ffi::Error ConvForward(ffi::ThreadPool pool, Array x, Floats w, Floats bias, Result y, Ints how,
                       bool with_bias, bool relu) {
  return Guarded([&] {
    const Shape s = ShapeOf(x.dimensions(), w.dimensions(), y->dimensions(), how, IsHalf(x));
    if (!y->element_count()) return;
    const Kind kind = with_bias ? (relu ? kForwardBiasRelu : kForwardBias)
                                : (relu ? kForwardRelu : kForward);
    if (!x.element_count()) return Zero(y->untyped_data(), y->size_bytes());
    Forward(pool, s, kind, x.untyped_data(), w.typed_data(), bias.typed_data(), y->untyped_data());
  });
}

ffi::Error ConvData(ffi::ThreadPool pool, Array dy, Floats w, Result dx, Ints how) {
  return Guarded([&] {
    const Shape s = ShapeOf(dx->dimensions(), w.dimensions(), dy.dimensions(), how, IsHalf(dy));
    if (!dy.element_count()) return Zero(dx->untyped_data(), dx->size_bytes());
    BackwardData(pool, s, dy.untyped_data(), w.typed_data(), dx->untyped_data());
  });
}

ffi::Error ConvWeights(ffi::ThreadPool pool, Array x, Array dy, FloatsResult dw, FloatsResult db,
                       Ints how) {
  return Guarded([&] {
    const Shape s = ShapeOf(x.dimensions(), dw->dimensions(), dy.dimensions(), how, IsHalf(x));
    float* bias = db->element_count() ? db->typed_data() : nullptr;
    if (!x.element_count() || !dy.element_count()) {
      Zero(dw->typed_data(), dw->size_bytes());
      return Zero(db->typed_data(), db->size_bytes());
    }
    BackwardWeights(pool, s, x.untyped_data(), dy.untyped_data(), dw->typed_data(), bias);
  });
}

ffi::Error NormForwardCall(ffi::ThreadPool pool, Array x, Floats scale, Floats bias, Result y,
                           ffi::ResultBuffer<ffi::DataType::U16> winner, FloatsResult mean,
                           FloatsResult var, Ints window, float epsilon) {
  return Guarded([&] {
    const auto d = x.dimensions();
    const Pool s{d[0], d[1], d[2], d[3], window[0], window[1]};
    if (!x.element_count()) {
      Zero(mean->typed_data(), mean->size_bytes());
      return Zero(var->typed_data(), var->size_bytes());
    }
    Typed(IsHalf(x), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      NormForward(pool, s, epsilon, static_cast<const T*>(x.untyped_data()), scale.typed_data(),
                  bias.typed_data(), static_cast<T*>(y->untyped_data()), winner->typed_data(),
                  mean->typed_data(), var->typed_data());
    });
  });
}

ffi::Error NormBackwardCall(ffi::ThreadPool pool, Array x, Floats scale, Floats mean, Floats var,
                            ffi::Buffer<ffi::DataType::U16> winner, Array dy, Result dx,
                            FloatsResult dscale, FloatsResult dbias, Ints window, float epsilon) {
  return Guarded([&] {
    const auto d = x.dimensions();
    const Pool s{d[0], d[1], d[2], d[3], window[0], window[1]};
    if (!x.element_count()) {
      Zero(dscale->typed_data(), dscale->size_bytes());
      return Zero(dbias->typed_data(), dbias->size_bytes());
    }
    Typed(IsHalf(x), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      NormBackward(pool, s, epsilon, static_cast<const T*>(x.untyped_data()), scale.typed_data(),
                   mean.typed_data(), var.typed_data(), winner.typed_data(),
                   static_cast<const T*>(dy.untyped_data()), static_cast<T*>(dx->untyped_data()),
                   dscale->typed_data(), dbias->typed_data());
    });
  });
}

Window WindowOf(ffi::Span<const int64_t> image, ffi::Span<const int64_t> result, Ints how) {
  return {image[0], image[1], image[2], image[3], result[1], result[2],
          how[0], how[1], how[2], how[3], how[4], how[5]};
}

ffi::Error MaxForwardCall(ffi::ThreadPool pool, Array x, Result y,
                          ffi::ResultBuffer<ffi::DataType::U16> winner, Ints how) {
  return Guarded([&] {
    if (!y->element_count()) return;
    const Window s = WindowOf(x.dimensions(), y->dimensions(), how);
    Typed(IsHalf(x), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      MaxForward(pool, s, static_cast<const T*>(x.untyped_data()),
                 static_cast<T*>(y->untyped_data()), winner->typed_data());
    });
  });
}

ffi::Error MaxBackwardCall(ffi::ThreadPool pool, ffi::Buffer<ffi::DataType::U16> winner, Array y,
                           Array dy, Result dx, Ints how, bool relu) {
  return Guarded([&] {
    if (!dy.element_count()) return Zero(dx->untyped_data(), dx->size_bytes());
    const Window s = WindowOf(dx->dimensions(), dy.dimensions(), how);
    Typed(IsHalf(dy), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      (relu ? MaxBackward<true, T> : MaxBackward<false, T>)(
          pool, s, winner.typed_data(), static_cast<const T*>(y.untyped_data()),
          static_cast<const T*>(dy.untyped_data()), static_cast<T*>(dx->untyped_data()));
    });
  });
}

ffi::Error DropCall(ffi::ThreadPool pool, Array x, ffi::Buffer<ffi::DataType::U32> key,
                    ffi::Buffer<ffi::DataType::U32> below, Floats scale, Result y) {
  return Guarded([&] {
    if (!x.element_count()) return;
    const int64_t features = x.dimensions().back();
    Typed(IsHalf(x), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      Drop(pool, static_cast<int64_t>(x.element_count()) / features, features, key.typed_data(),
           below.typed_data()[0], scale.typed_data()[0], static_cast<const T*>(x.untyped_data()),
           static_cast<T*>(y->untyped_data()));
    });
  });
}

ffi::Error MeanForwardCall(ffi::ThreadPool pool, Array x, Result y, Ints how) {
  return Guarded([&] {
    if (!y->element_count()) return;
    const Window s = WindowOf(x.dimensions(), y->dimensions(), how);
    Typed(IsHalf(x), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      MeanForward(pool, s, static_cast<const T*>(x.untyped_data()),
                  static_cast<T*>(y->untyped_data()));
    });
  });
}

ffi::Error MeanBackwardCall(ffi::ThreadPool pool, Array dy, Result dx, Ints how) {
  return Guarded([&] {
    if (!dy.element_count()) return Zero(dx->untyped_data(), dx->size_bytes());
    const Window s = WindowOf(dx->dimensions(), dy.dimensions(), how);
    Typed(IsHalf(dy), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      MeanBackward(pool, s, static_cast<const T*>(dy.untyped_data()),
                   static_cast<T*>(dx->untyped_data()));
    });
  });
}

}  // namespace

using U32 = ffi::Buffer<ffi::DataType::U32>;
using U16 = ffi::Buffer<ffi::DataType::U16>;

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    conv_forward, ConvForward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Arg<Floats>().Ret<Array>()
        .Attr<Ints>("how").Attr<bool>("with_bias").Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    conv_data, ConvData,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Ret<Array>()
        .Attr<Ints>("how"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    conv_weights, ConvWeights,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Floats>().Ret<Floats>()
        .Attr<Ints>("how"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    norm_forward, NormForwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Arg<Floats>().Ret<Array>()
        .Ret<U16>().Ret<Floats>().Ret<Floats>().Attr<Ints>("window").Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    norm_backward, NormBackwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
        .Arg<U16>().Arg<Array>().Ret<Array>().Ret<Floats>().Ret<Floats>()
        .Attr<Ints>("window").Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    max_forward, MaxForwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>().Ret<U16>()
        .Attr<Ints>("how"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    max_backward, MaxBackwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<U16>().Arg<Array>().Arg<Array>().Ret<Array>()
        .Attr<Ints>("how").Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    drop, DropCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<U32>().Arg<U32>().Arg<Floats>()
        .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    mean_forward, MeanForwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>().Attr<Ints>("how"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    mean_backward, MeanBackwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>().Attr<Ints>("how"));
