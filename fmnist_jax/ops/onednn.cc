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
#include <unordered_map>
#include <vector>

#include <immintrin.h>

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
  thread_local std::unique_ptr<char, Free> buffers[5];
  thread_local size_t sizes[5] = {0, 0, 0, 0, 0};
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

// Numbers, N at a time: vectors of the compiler.

struct BFloat16 { uint16_t bits; };

template <int N> struct Lanes {
  typedef float F __attribute__((vector_size(4 * N)));
  typedef int32_t I __attribute__((vector_size(4 * N)));
  typedef uint32_t U __attribute__((vector_size(4 * N)));
  typedef uint16_t H __attribute__((vector_size(2 * N)));
};
template <int N> using F = typename Lanes<N>::F;
template <int N> using I = typename Lanes<N>::I;

template <typename V, typename T>
inline V Raw(const T* p) {
  V value;
  std::memcpy(&value, p, sizeof(V));
  return value;
}

template <int N> inline F<N> Load(const float* p) { return Raw<F<N>>(p); }
template <int N> inline F<N> Load(const BFloat16* p) {
  using U = typename Lanes<N>::U;
  return (F<N>)(__builtin_convertvector(Raw<typename Lanes<N>::H>(p), U) << 16);
}
template <int N> inline I<N> Load(const uint16_t* p) {
  return __builtin_convertvector(Raw<typename Lanes<N>::H>(p), I<N>);
}

template <int N> inline void Save(float* p, F<N> x) { std::memcpy(p, &x, sizeof(x)); }
template <int N> inline void Save(uint16_t* p, I<N> x) {
  const auto narrow = __builtin_convertvector(x, typename Lanes<N>::H);
  std::memcpy(p, &narrow, sizeof(narrow));
}
template <int N> inline void Save(BFloat16* p, F<N> x) {
#ifdef __AVX512BF16__
  if constexpr (N == 16) {
    const auto narrow = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(p, &narrow, sizeof(narrow));
    return;
  }
#endif
  using U = typename Lanes<N>::U;
  const U bits = (U)x;
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // To nearest, ties to even.
  const U whole = x != x ? U{} + 0x7fc0 : rounded;
  const auto narrow = __builtin_convertvector(whole, typename Lanes<N>::H);
  std::memcpy(p, &narrow, sizeof(narrow));
}


// Calls body(N, k) for numbers k to k + N - 1 until all of them are done. `N` is a constant's type.
template <int widest = 16, typename Body>
inline void InLanes(int64_t count, Body body) {
  int64_t k = 0;
  for (; k + widest <= count; k += widest) body(std::integral_constant<int, widest>(), k);
  for (; k + 4 <= count; k += 4) body(std::integral_constant<int, 4>(), k);
  for (; k < count; ++k) body(std::integral_constant<int, 1>(), k);
}

constexpr uint16_t kNobody = 65535;  // Gets the gradient of a window.

// ReLU of the bits of numbers. The bits of its results are in the order of the numbers, NaN last.
// (oneDNN's own ReLU makes NaN 0.)
template <typename T> using BitsOf = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
template <typename T, int N>
using Bits = std::conditional_t<sizeof(T) == 2, typename Lanes<N>::H, typename Lanes<N>::U>;
template <typename T> constexpr int kMost = 64 / sizeof(T);  // That a register holds.

template <typename T, int N>
inline Bits<T, N> RectifiedBits(const T* p) {
  constexpr BitsOf<T> minus = sizeof(T) == 2 ? 0x8000 : 0x80000000;
  constexpr BitsOf<T> infinity = sizeof(T) == 2 ? 0x7f80 : 0x7f800000;
  const auto x = Raw<Bits<T, N>>(p);
  return x - minus <= infinity ? Bits<T, N>{} : x;
}

template <typename T>
void Rectify(T* x, int64_t count) {
  InLanes<kMost<T>>(count, [&](auto lanes, int64_t k) {
    const auto y = RectifiedBits<T, decltype(lanes)::value>(x + k);
    std::memcpy(x + k, &y, sizeof(y));
  });
}

// For who wins: a NaN is larger than all, and of NaNs and equals the first stays.
template <typename V> inline auto Larger(V value, V best) {
  return (value > best) | ((value != value) & (best == best));
}

// Pooling with any windows, strides and padding.

struct Window {
  int64_t n, h, w, c, out_h, out_w, kh, kw, stride_h, stride_w, top, left;
  int64_t in() const { return h * w * c; }
  int64_t out() const { return out_h * out_w * c; }
  // Calls body(where, position) for each pixel of window i, j: where it lies in the image and in
  // the window; pixels of padding are left out.
  template <typename Body>
  void Pixels(int64_t i, int64_t j, Body body) const {
    const int64_t y = i * stride_h - top, x = j * stride_w - left;
    if (kh == 2 && kw == 2 && y >= 0 && x >= 0 && y + 2 <= h && x + 2 <= w) {  // A third faster.
      const int64_t first = (y * w + x) * c;
      body(first, 0), body(first + c, 1), body(first + w * c, 2), body(first + w * c + c, 3);
      return;
    }
    for (int64_t u = std::max<int64_t>(-y, 0); u < std::min(kh, h - y); ++u)
      for (int64_t v = std::max<int64_t>(-x, 0); v < std::min(kw, w - x); ++v)
        body(((y + u) * w + x + v) * c, static_cast<int>(u * kw + v));
  }
  // The position of a window's first pixel; that of nobody where all of it is padding.
  int First(int64_t i, int64_t j) const {
    const int64_t y = i * stride_h - top, x = j * stride_w - left;
    const int64_t u = std::max<int64_t>(-y, 0), v = std::max<int64_t>(-x, 0);
    return u < std::min(kh, h - y) && v < std::min(kw, w - x) ? u * kw + v : kNobody;
  }
  bool apart() const { return stride_h >= kh && stride_w >= kw; }  // A pixel has one window at most.
  // And one at least: windows side by side from the first pixel to the last.
  bool full() const {
    return top == 0 && left == 0 && stride_h == kh && stride_w == kw && out_h * kh == h &&
           out_w * kw == w;
  }
  template <typename Body>
  void ForEachExample(ffi::ThreadPool& pool, Body body) const {
    const int64_t parts = PartsOf(n, 4);
    ForEach(pool, parts, [&](int64_t part) {
      const Range range = PartOf(n, parts, part);
      for (int64_t example = range.begin; example < range.end; ++example) body(example);
    });
  }
};

// Of one image. `winner`: who gets each window's gradient, where that is kept.
template <bool kept, typename T>
void MaxOf(const Window& s, const T* x, T* y, uint16_t* winner) {
  for (int64_t i = 0; i < s.out_h; ++i)
    for (int64_t j = 0; j < s.out_w; ++j) {
      const int64_t where = (i * s.out_w + j) * s.c;
      const int first = s.First(i, j);
      InLanes(s.c, [&](auto lanes, int64_t k) {
        constexpr int N = decltype(lanes)::value;
        F<N> best = F<N>{} - std::numeric_limits<float>::infinity();
        I<N> at = I<N>{} + first;
        s.Pixels(i, j, [&](int64_t pixel, int position) {
          const F<N> value = Load<N>(x + pixel + k);
          if (kept) at = Larger(value, best) ? I<N>{} + position : at;
          best = value > best ? value : best;
          best = value != value ? value : best;
        });
        Save<N>(y + where + k, best);
        if (kept) Save<N>(winner + where + k, at);
      });
    }
}

// The same of ReLU of an image, without padding.
template <bool kept, typename T>
void MaxOfRectified(const Window& s, const T* x, T* y, uint16_t* winner) {
  for (int64_t i = 0; i < s.out_h; ++i)
    for (int64_t j = 0; j < s.out_w; ++j, y += s.c, winner += kept ? s.c : 0)
      InLanes<kMost<T>>(s.c, [&](auto lanes, int64_t k) {
        constexpr int N = decltype(lanes)::value;
        Bits<T, N> best{}, at{};
        s.Pixels(i, j, [&](int64_t pixel, int position) {
          const auto value = RectifiedBits<T, N>(x + pixel + k);
          const auto larger = value > best;
          best = larger ? value : best;
          if (kept) at = larger ? Bits<T, N>{} + static_cast<BitsOf<T>>(position) : at;
        });
        std::memcpy(y + k, &best, sizeof(best));
        if (kept) {
          constexpr BitsOf<T> infinity = sizeof(T) == 2 ? 0x7f80 : 0x7f800000;
          at = best - 1 < infinity ? at : Bits<T, N>{} + kNobody;  // Rectified, or NaN.
          const auto narrow = __builtin_convertvector(at, typename Lanes<N>::H);
          std::memcpy(winner + k, &narrow, sizeof(narrow));
        }
      });
}

template <typename T>
void MaxForward(ffi::ThreadPool& pool, const Window& s, const T* x, T* y, uint16_t* winner) {
  s.ForEachExample(pool, [&](int64_t example) {
    const int64_t at = example * s.out();
    if (winner) MaxOf<true>(s, x + example * s.in(), y + at, winner + at);
    else MaxOf<false>(s, x + example * s.in(), y + at, winner);
  });
}

template <typename T>
void MaxBackward(ffi::ThreadPool& pool, const Window& s, const uint16_t* winner, const T* dy,
                 T* dx) {
  s.ForEachExample(pool, [&](int64_t example) {
    const uint16_t* at = winner + example * s.out();
    const T* g = dy + example * s.out();
    T* target = dx + example * s.in();
    if (s.apart()) {
      if (!s.full()) std::memset(target, 0, s.in() * sizeof(T));
      for (int64_t i = 0; i < s.out_h; ++i)
        for (int64_t j = 0; j < s.out_w; ++j, g += s.c, at += s.c)
          InLanes<kMost<T>>(s.c, [&](auto lanes, int64_t k) {
            constexpr int N = decltype(lanes)::value;
            const auto given = Raw<Bits<T, N>>(g + k);
            const auto who = __builtin_convertvector(Raw<typename Lanes<N>::H>(at + k), Bits<T, N>);
            s.Pixels(i, j, [&](int64_t pixel, int position) {
              const auto part = who == static_cast<BitsOf<T>>(position) ? given : Bits<T, N>{};
              std::memcpy(target + pixel + k, &part, sizeof(part));
            });
          });
      return;
    }
    float* sum = reinterpret_cast<float*>(Scratch(3, s.in() * 4));
    std::fill(sum, sum + s.in(), 0.0f);
    for (int64_t i = 0; i < s.out_h; ++i)
      for (int64_t j = 0; j < s.out_w; ++j, g += s.c, at += s.c)
        InLanes(s.c, [&](auto lanes, int64_t k) {
          constexpr int N = decltype(lanes)::value;
          const F<N> given = Load<N>(g + k);
          const I<N> who = Load<N>(at + k);
          s.Pixels(i, j, [&](int64_t pixel, int position) {
            const F<N> part = who == position ? given : F<N>{};
            Save<N>(sum + pixel + k, Load<N>(sum + pixel + k) + part);
          });
        });
    InLanes(s.in(), [&](auto lanes, int64_t k) {
      constexpr int N = decltype(lanes)::value;
      Save<N>(target + k, Load<N>(sum + k));
    });
  });
}

template <typename T>
void MeanForward(ffi::ThreadPool& pool, const Window& s, const T* x, T* y) {
  const float share = 1.0f / (s.kh * s.kw);
  s.ForEachExample(pool, [&](int64_t example) {
    const T* image = x + example * s.in();
    T* result = y + example * s.out();
    for (int64_t i = 0; i < s.out_h; ++i)
      for (int64_t j = 0; j < s.out_w; ++j, result += s.c)
        InLanes(s.c, [&](auto lanes, int64_t k) {
          constexpr int N = decltype(lanes)::value;
          F<N> sum{};
          s.Pixels(i, j, [&](int64_t pixel, int) { sum += Load<N>(image + pixel + k); });
          Save<N>(result + k, sum * share);
        });
  });
}

template <typename T>
void MeanBackward(ffi::ThreadPool& pool, const Window& s, const T* dy, T* dx) {
  const float share = 1.0f / (s.kh * s.kw);
  const int64_t size = s.in();
  s.ForEachExample(pool, [&](int64_t example) {
    float* sum = reinterpret_cast<float*>(Scratch(3, size * 4));
    std::fill(sum, sum + size, 0.0f);
    for (int64_t i = 0; i < s.out_h; ++i)
      for (int64_t j = 0; j < s.out_w; ++j) {
        const T* g = dy + ((example * s.out_h + i) * s.out_w + j) * s.c;
        s.Pixels(i, j, [&](int64_t pixel, int) {
          InLanes(s.c, [&](auto lanes, int64_t k) {
            constexpr int N = decltype(lanes)::value;
            Save<N>(sum + pixel + k, Load<N>(sum + pixel + k) + Load<N>(g + k) * share);
          });
        });
      }
    InLanes(size, [&](auto lanes, int64_t k) {
      constexpr int N = decltype(lanes)::value;
      Save<N>(dx + example * size + k, Load<N>(sum + k));
    });
  });
}

// Convolution.

struct Shape {
  int64_t n, h, w, c, out_h, out_w, o, kh, kw, stride_h, stride_w, top, left, bottom, right,
      dilate_h, dilate_w, groups;
  bool bf16;
};

// What is computed: a result or a gradient, with a bias; for a result, plus other images.
struct Kind {
  enum { kForward, kData, kWeights } what;
  bool bias = false, add = false;
};

// A primitive for one size of part, with the layouts it wants.
struct Primitive {
  dnnl::primitive primitive;
  memory::desc image, weights, result;
  size_t scratch;
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

// oneDNN prefers its batch-reduced products to its direct form, which was measured faster by 2 to 16 %
// on AVX-512 (not where there are tiles, AMX): takes the direct form where that is the next one.
// `describe` makes a description; a copy of one would be the same object.
template <typename Describe>
auto Direct(Describe describe) {
  auto first = describe(), next = describe();
  const std::string name = first.impl_info_str();
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (name.rfind("brg", 0) != 0 || !has("avx512") || has("amx") || !next.next_impl()) return first;
  return std::string(next.impl_info_str()).rfind("jit", 0) == 0 ? next : first;
}

std::shared_ptr<const Primitive> MakePrimitive(Kind kind, const Shape& s, int64_t n) {
  using namespace dnnl;
  const auto type = s.bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc src = Images(n, s.h, s.w, s.c, s.bf16);
  const memory::desc dst = Images(n, s.out_h, s.out_w, s.o, s.bf16);
  const bool gradient = kind.what == Kind::kWeights;
  const memory::desc given = Weights(s);
  const memory::desc weights(given.get_dims(), gradient ? memory::data_type::f32 : type,
                             memory::format_tag::any);
  const memory::desc no_bias;
  const memory::desc bias({s.o}, memory::data_type::f32, memory::format_tag::x);
  const memory::dims strides{s.stride_h, s.stride_w}, dilates{s.dilate_h - 1, s.dilate_w - 1},
      low{s.top, s.left}, high{s.bottom, s.right};
  const auto algorithm = algorithm::convolution_direct;
  primitive_attr attr;
  attr.set_scratchpad_mode(scratchpad_mode::user);
  post_ops ops;
  if (kind.add) ops.append_binary(algorithm::binary_add, dst);
  attr.set_post_ops(ops);
  auto made = std::make_shared<Primitive>();
  const memory::desc w_forward(given.get_dims(), type, memory::format_tag::any);
  const auto describe = [&] {
    return convolution_forward::primitive_desc(
        Engine(), prop_kind::forward_training, algorithm, src, w_forward,
        kind.bias ? bias : no_bias, dst, strides, dilates, low, high,
        kind.what == Kind::kForward ? attr : primitive_attr());
  };
  auto keep = [&](const auto& pd, const memory::desc& image, const memory::desc& w,
                  const memory::desc& result, dnnl::primitive primitive) {
    made->primitive = primitive;
    made->image = image, made->weights = w, made->result = result;
    made->scratch = pd.scratchpad_desc().get_size();
  };
  if (kind.what == Kind::kData) {
    const auto forward = describe();
    const auto pd = Direct([&] {
      return convolution_backward_data::primitive_desc(Engine(), algorithm, src, weights, dst,
                                                       strides, dilates, low, high, forward, attr);
    });
    keep(pd, dst, pd.weights_desc(), src, convolution_backward_data(pd));
  } else if (gradient) {
    convolution_backward_weights::primitive_desc pd(
        Engine(), algorithm, src, weights, kind.bias ? bias : no_bias, dst, strides, dilates, low,
        high, describe(), attr);
    keep(pd, src, pd.diff_weights_desc(), dst, convolution_backward_weights(pd));
  } else {
    const auto forward = Direct(describe);
    keep(forward, src, forward.weights_desc(), dst, convolution_forward(forward));
  }
  return made;
}

// What `make` makes for a key, made once.
template <typename Make>
std::shared_ptr<const Primitive> Kept(const std::vector<int64_t>& key, Make make) {
  static std::mutex mutex;
  static std::map<std::vector<int64_t>, std::shared_ptr<const Primitive>> made;
  std::lock_guard<std::mutex> lock(mutex);
  auto& found = made[key];
  if (!found) {
    OneThread one;
    found = make();
  }
  return found;
}

std::shared_ptr<const Primitive> PrimitiveFor(Kind kind, const Shape& s, int64_t n) {
  return Kept({kind.what, kind.bias, kind.add, n, s.h, s.w, s.c, s.out_h, s.out_w, s.o, s.kh, s.kw,
               s.stride_h, s.stride_w, s.top, s.left, s.bottom, s.right, s.dilate_h, s.dilate_w,
               s.groups, s.bf16}, [&] { return MakePrimitive(kind, s, n); });
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

// ReLU follows, and a max-pool of more than one pixel, while a part is near.
template <typename T>
void Forward(ffi::ThreadPool& pool, const Shape& s, Kind kind, bool relu, const Window& window,
             const T* x, const float* w, const float* bias, const T* add, T* y, uint16_t* winner) {
  const int64_t parts = PartsOf(s.n, 16), n = s.n / parts;
  const bool pooled = window.kh * window.kw > 1;
  const auto p = PrimitiveFor(kind, s, n);
  const memory weights = Reordered(Weights(s), w, p->weights);
  ForEach(pool, parts, [&](int64_t part) {
    const int64_t first = part * n * window.in();
    T* result = pooled ? reinterpret_cast<T*>(Scratch(2, n * window.in() * sizeof(T))) : y + first;
    std::unordered_map<int, memory> args{
        {DNNL_ARG_SRC, Wrap(p->image, x + part * n * s.h * s.w * s.c)},
        {DNNL_ARG_WEIGHTS, weights},
        {DNNL_ARG_DST, Wrap(p->result, result)}};
    if (kind.bias)
      args[DNNL_ARG_BIAS] = Wrap({{s.o}, memory::data_type::f32, memory::format_tag::x}, bias);
    if (kind.add)
      args[DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1] = Wrap(p->result, add + first);
    Run(*p, args);
    if (relu && !pooled) Rectify(result, n * window.in());
    for (int64_t i = 0; pooled && i < n; ++i) {
      const int64_t at = (part * n + i) * window.out();
      if (winner) MaxOfRectified<true>(window, result + i * window.in(), y + at, winner + at);
      else MaxOfRectified<false>(window, result + i * window.in(), y + at, winner);
    }
  });
}

void BackwardData(ffi::ThreadPool& pool, const Shape& s, const void* dy, const float* w, void* dx) {
  const int64_t parts = PartsOf(s.n, 16), n = s.n / parts;
  const auto p = PrimitiveFor({Kind::kData}, s, n);
  const memory weights = Reordered(Weights(s), w, p->weights);
  ForEach(pool, parts, [&](int64_t part) {
    Run(*p, {{DNNL_ARG_DIFF_DST, Wrap(p->image, At(dy, part * n * s.out_h * s.out_w * s.o, s.bf16))},
             {DNNL_ARG_WEIGHTS, weights},
             {DNNL_ARG_DIFF_SRC, Wrap(p->result, At(dx, part * n * s.h * s.w * s.c, s.bf16))}});
  });
}

// Several images side by side, zeros between them, that are convolved as one wide image is.
struct Panorama {
  int64_t images, slot;  // Of each: its columns of results, and those up to the next.
};

// The gradient of weights sums over rows of results; in bfloat16 AMX takes 32 pixels at a time,
// however few a row has. Of rows of 7, side by side, it was measured 2.2 to 2.8 times as fast, of
// rows of 14 no faster; without AMX as fast.
Panorama PanoramaOf(const Shape& s, int64_t n) {
  const int64_t reach = (s.kw - 1) * s.dilate_w, last = (s.out_w - 1) * s.stride_w - s.left + reach;
  // No window of an image reaches into another.
  const int64_t slot = std::max({s.out_w, (s.w + s.left + s.stride_w - 1) / s.stride_w,
                                 last / s.stride_w + 1});
  if (!s.bf16 || s.groups > 1 || s.left > reach || slot > 32 / 3) return {1, slot};
  int64_t images = std::min(n, 32 / slot);
  while (n % images) --images;
  return {images, slot};
}

// The shape of a batch of panoramas.
Shape Wide(Shape s, const Panorama& p) {
  if (p.images == 1) return s;
  s.out_w = p.images * p.slot;
  s.w = s.out_w * s.stride_w;
  s.right = std::max<int64_t>((s.kw - 1) * s.dilate_w + 1 - s.stride_w - s.left, 0);
  return s;
}

// Images [n, h, w, c] of bfloat16 as panoramas [n / images, h, images * slot, c].
const void* SideBySide(const void* from, int64_t n, int64_t h, int64_t w, int64_t c, int64_t images,
                       int64_t slot, int buffer) {
  const int64_t used = std::min(w, slot) * c * 2, whole = slot * c * 2;
  char* const panorama = Scratch(buffer, n * h * whole);
  char* to = panorama;
  for (int64_t first = 0; first < n; first += images)
    for (int64_t row = 0; row < h; ++row)
      for (int64_t k = first; k < first + images; ++k, to += whole) {
        std::memcpy(to, At(from, (k * h + row) * w * c, true), used);
        std::memset(to + used, 0, whole - used);
      }
  return panorama;
}

void BackwardWeights(ffi::ThreadPool& pool, const Shape& s, const void* x, const void* dy,
                     float* dw, float* db) {
  const int64_t parts = PartsOf(s.n, 32), n = s.n / parts;
  const Panorama row = PanoramaOf(s, n);
  const auto p = PrimitiveFor({Kind::kWeights, db != nullptr}, Wide(s, row), n / row.images);
  // Each part's gradient, weights and then bias, one after another in memory.
  const int64_t own = (p->weights.get_size() / 4 + 15) / 16 * 16;
  const int64_t stride = own + (db ? (s.o + 15) / 16 * 16 : 0);
  float* sums = reinterpret_cast<float*>(Scratch(2, parts * stride * 4));
  ForEach(pool, parts, [&](int64_t part) {
    const void* image = At(x, part * n * s.h * s.w * s.c, s.bf16);
    const void* result = At(dy, part * n * s.out_h * s.out_w * s.o, s.bf16);
    if (row.images > 1) {
      image = SideBySide(image, n, s.h, s.w, s.c, row.images, row.slot * s.stride_w, 3);
      result = SideBySide(result, n, s.out_h, s.out_w, s.o, row.images, row.slot, 4);
    }
    float* mine = sums + part * stride;
    std::unordered_map<int, memory> args{
        {DNNL_ARG_SRC, Wrap(p->image, image)},
        {DNNL_ARG_DIFF_DST, Wrap(p->result, result)},
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

// BatchNorm with the batch's statistics; then ReLU and a max-pool of windows that do not overlap, or
// a sum with other images and ReLU.

struct Pool {
  int64_t n, h, w, c, ph, pw;
  bool relu;
  int64_t out_h() const { return h / ph; }
  int64_t out_w() const { return w / pw; }
  bool alone() const { return ph * pw == 1; }  // Each pixel is a window: rows of channels are enough.
  int64_t rows() const { return n * h * w; }
  // Calls body(first pixel, window) for the windows of examples, in units of c numbers.
  template <typename Body>
  void Windows(Range examples, Body body) const {
    for (int64_t row = examples.begin * out_h(); row < examples.end * out_h(); ++row) {
      const int64_t top = (row / out_h() * h + row % out_h() * ph) * w;
      for (int64_t j = 0; j < out_w(); ++j) body(top + j * pw, row * out_w() + j);
    }
  }
  // Where the pixels of a window lie after its first one, in numbers.
  std::vector<int64_t> Places() const {
    std::vector<int64_t> places;
    for (int64_t u = 0; u < ph; ++u)
      for (int64_t v = 0; v < pw; ++v) places.push_back((u * w + v) * c);
    return places;
  }
};

// How many rows of c channels are summed in float32: what the innermost cache holds.
int64_t RowsTogether(int64_t c) { return std::clamp<int64_t>(4096 / c, 8, 256); }

int64_t RowParts(int64_t rows) { return std::clamp<int64_t>(rows / 4096, 1, 32); }

// Adds up two quantities for each channel over rows, in float32 over some of them, then in float64:
// term(N, row, k, first, second) adds those of a row's channels k to k + N - 1. Returns both, [2, c].
template <typename Term>
std::vector<double> SumRows(ffi::ThreadPool& pool, int64_t rows, int64_t c, Term term) {
  const int64_t parts = RowParts(rows);
  std::vector<double> sums(parts * 2 * c, 0.0);
  ForEach(pool, parts, [&](int64_t part) {
    const Range range = PartOf(rows, parts, part);
    double* total = &sums[part * 2 * c];
    for (int64_t start = range.begin; start < range.end; start += RowsTogether(c))
      InLanes(c, [&](auto lanes, int64_t k) {
        constexpr int N = decltype(lanes)::value;
        // Several sums, as one addition waits for the one before.
        F<N> first[4] = {}, second[4] = {};
        int64_t row = start;
        const int64_t end = std::min(start + RowsTogether(c), range.end);
        for (; row + 4 <= end; row += 4)
          for (int i = 0; i < 4; ++i) term(lanes, row + i, k, first[i], second[i]);
        for (; row < end; ++row) term(lanes, row, k, first[0], second[0]);
        const F<N> a = first[0] + first[1] + (first[2] + first[3]);
        const F<N> b = second[0] + second[1] + (second[2] + second[3]);
        for (int i = 0; i < N; ++i) total[k + i] += a[i], total[c + k + i] += b[i];
      });
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < 2 * c; ++i) sums[i] += sums[part * 2 * c + i];
  return sums;
}

template <typename V> inline V Rectified(V x) { return (x > 0) | (x != x) ? x : V{}; }

template <typename T>
void NormForward(ffi::ThreadPool& pool, const Pool& s, float epsilon, const T* x,
                 const float* scale, const float* bias, const T* residual, T* y, uint16_t* winner,
                 float* mean, float* var) {
  const int64_t c = s.c;
  const std::vector<double> sums = SumRows(
      pool, s.rows(), c, [&](auto lanes, int64_t row, int64_t k, auto& sum, auto& square) {
        const auto value = Load<decltype(lanes)::value>(x + row * c + k);
        sum += value;
        square += value * value;
      });
  std::vector<float> slope(c), offset(c);
  for (int64_t i = 0; i < c; ++i) {
    const double average = sums[i] / s.rows(), square = sums[c + i];
    mean[i] = average;
    var[i] = square != square ? square : std::max(square / s.rows() - average * average, 0.0);
    slope[i] = scale[i] / std::sqrt(var[i] + epsilon);
    offset[i] = bias[i] - mean[i] * slope[i];
  }
  const float *a = slope.data(), *b = offset.data();
  if (s.alone()) {
    ForEach(pool, RowParts(s.rows()), [&](int64_t part) {
      const Range range = PartOf(s.rows(), RowParts(s.rows()), part);
      for (int64_t row = range.begin; row < range.end; ++row)
        InLanes(c, [&](auto lanes, int64_t k) {
          constexpr int N = decltype(lanes)::value;
          F<N> value = Load<N>(x + row * c + k) * Load<N>(a + k) + Load<N>(b + k);
          if (residual) value += Load<N>(residual + row * c + k);
          Save<N>(y + row * c + k, s.relu ? Rectified(value) : value);
        });
    });
    return;
  }
  const std::vector<int64_t> places = s.Places();
  ForEach(pool, PartsOf(s.n, 4), [&](int64_t part) {
    s.Windows(PartOf(s.n, PartsOf(s.n, 4), part), [&](int64_t first, int64_t window) {
      InLanes(c, [&](auto lanes, int64_t k) {
        constexpr int N = decltype(lanes)::value;
        const F<N> slope = Load<N>(a + k), offset = Load<N>(b + k);
        const T* p = x + first * c + k;
        F<N> best = Load<N>(p) * slope + offset;
        I<N> at{};
        for (size_t position = 1; position < places.size(); ++position) {
          const F<N> value = Load<N>(p + places[position]) * slope + offset;
          const auto larger = Larger(value, best);
          best = larger ? value : best;
          at = larger ? I<N>{} + static_cast<int>(position) : at;
        }
        Save<N>(y + window * c + k, s.relu ? Rectified(best) : best);
        // Rectified: nobody gets a gradient.
        Save<N>(winner + window * c + k, (best > 0) | !s.relu ? at : I<N>{} + kNobody);
      });
    });
  });
}

// With a window of one pixel who gets the gradient is told by the result y.
template <typename T>
void NormBackward(ffi::ThreadPool& pool, const Pool& s, float epsilon, const T* x,
                  const float* scale, const float* mean, const float* var, const uint16_t* winner,
                  const T* y, const T* dy, T* dx, float* dscale, float* dbias, T* dresidual) {
  const int64_t c = s.c, out_w = s.out_w();
  const std::vector<int64_t> places = s.Places();
  // Sums of the gradient, and of the gradient times x.
  const std::vector<double> sums = SumRows(
      pool, s.n * s.out_h() * out_w, c,
      [&](auto lanes, int64_t row, int64_t k, auto& sum, auto& product) {
        constexpr int N = decltype(lanes)::value;
        const F<N> given = Load<N>(dy + row * c + k);
        F<N> g = given, value;
        if (s.alone()) {
          if (s.relu) g = Load<N>(y + row * c + k) > 0 ? given : F<N>{};
          if (dresidual) Save<N>(dresidual + row * c + k, g);
          value = Load<N>(x + row * c + k);
        } else {
          const I<N> at = Load<N>(winner + row * c + k);
          const int64_t top = row / out_w, example = top / s.out_h();
          const int64_t first =
              (example * s.h + top % s.out_h() * s.ph) * s.w + row % out_w * s.pw;
          const T* p = x + first * c + k;
          value = Load<N>(p);
          for (size_t i = 1; i < places.size(); ++i)
            value = at == static_cast<int>(i) ? Load<N>(p + places[i]) : value;
          g = at == kNobody ? F<N>{} : given;
        }
        sum += g;
        product += g * (value - Load<N>(mean + k));
      });
  std::vector<float> slope(c), line(c), offset(c);
  const double count = s.rows();
  for (int64_t k = 0; k < c; ++k) {
    const double sum = sums[k], product = sums[c + k];
    const double inverse = 1 / std::sqrt(static_cast<double>(var[k]) + epsilon);
    dbias[k] = sum;
    dscale[k] = product * inverse;
    // dx = slope * g + line * x + offset.
    slope[k] = scale[k] * inverse;
    line[k] = -scale[k] * inverse * inverse * inverse * product / count;
    offset[k] = -scale[k] * inverse * sum / count - line[k] * mean[k];
  }
  const float *a = slope.data(), *m = line.data(), *b = offset.data();
  if (s.alone()) {
    ForEach(pool, RowParts(s.rows()), [&](int64_t part) {
      const Range range = PartOf(s.rows(), RowParts(s.rows()), part);
      for (int64_t row = range.begin; row < range.end; ++row)
        InLanes(c, [&](auto lanes, int64_t k) {
          constexpr int N = decltype(lanes)::value;
          const int64_t at = row * c + k;
          F<N> g = Load<N>((dresidual ? dresidual : dy) + at);
          if (s.relu && !dresidual) g = Load<N>(y + at) > 0 ? g : F<N>{};
          Save<N>(dx + at, Load<N>(a + k) * g + (Load<N>(x + at) * Load<N>(m + k) + Load<N>(b + k)));
        });
    });
    return;
  }
  ForEach(pool, PartsOf(s.n, 4), [&](int64_t part) {
    const Range range = PartOf(s.n, PartsOf(s.n, 4), part);
    s.Windows(range, [&](int64_t first, int64_t window) {
      InLanes(c, [&](auto lanes, int64_t k) {
        constexpr int N = decltype(lanes)::value;
        const F<N> given = Load<N>(dy + window * c + k) * Load<N>(a + k);
        const F<N> line = Load<N>(m + k), offset = Load<N>(b + k);
        const I<N> at = Load<N>(winner + window * c + k);
        for (size_t i = 0; i < places.size(); ++i) {
          const int64_t here = first * c + k + places[i];
          const F<N> g = at == static_cast<int>(i) ? given : F<N>{};
          Save<N>(dx + here, g + (Load<N>(x + here) * line + offset));
        }
      });
    });
    // Pixels that no window reaches.
    const int64_t bottom = s.out_h() * s.ph, right = out_w * s.pw;
    for (int64_t row = range.begin * s.h; row < range.end * s.h; ++row)
      for (int64_t w = row % s.h < bottom ? right : 0; w < s.w; ++w)
        InLanes(c, [&](auto lanes, int64_t k) {
          constexpr int N = decltype(lanes)::value;
          const int64_t here = (row * s.w + w) * c + k;
          Save<N>(dx + here, Load<N>(x + here) * Load<N>(m + k) + Load<N>(b + k));
        });
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
      for (int64_t row = 0; row < here; ++row)
        for (int half = 0; half < 2; ++half) {
          const uint32_t* drawn = bits + row * words;
          const int64_t first = (start + row) * features + half * words;
          InLanes(half ? features - words : words, [&](auto lanes, int64_t k) {
            constexpr int N = decltype(lanes)::value;
            const auto own = Raw<typename Lanes<N>::U>(drawn + k) >> (16 * half) & 0xffff;
            Save<N>(y + first + k, own < below ? Load<N>(x + first + k) * scale : F<N>{});
          });
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

// Of strides, padding (top, left, bottom, right), dilation and groups.
Shape ShapeOf(ffi::Span<const int64_t> image, ffi::Span<const int64_t> kernel, Ints how, bool bf16) {
  auto out = [&](int axis) {
    const int64_t reach = (kernel[axis] - 1) * how[6 + axis] + 1;
    return (image[1 + axis] + how[2 + axis] + how[4 + axis] - reach) / how[axis] + 1;
  };
  return {image[0], image[1], image[2], image[3], out(0), out(1), kernel[3], kernel[0],
          kernel[1], how[0], how[1], how[2], how[3], how[4], how[5], how[6], how[7], how[8], bf16};
}

void Zero(void* data, size_t bytes) { if (bytes) std::memset(data, 0, bytes); }

// Of the kind `Of`; null where nothing was given.
template <typename Of, typename B>
Of* Given(B& buffer) {
  return buffer.element_count() ? static_cast<Of*>(buffer.untyped_data()) : nullptr;
}

// `bias`, `add` and `winner` are empty where there are none. `window`: of a max-pool, after ReLU.
ffi::Error ConvForward(ffi::ThreadPool pool, Array x, Floats w, Floats bias, Array add, Result y,
                       ffi::ResultBuffer<ffi::DataType::U16> winner, Ints how, Ints window,
                       bool relu) {
  return Guarded([&] {
    const Shape s = ShapeOf(x.dimensions(), w.dimensions(), how, IsHalf(x));
    const Kind kind{Kind::kForward, bias.element_count() > 0, add.element_count() > 0};
    const auto d = y->dimensions();
    const Window of{s.n, s.out_h, s.out_w, s.o, d[1], d[2], window[0], window[1], window[0],
                    window[1], 0, 0};
    Typed(s.bf16, [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      Forward(pool, s, kind, relu, of, static_cast<const T*>(x.untyped_data()), w.typed_data(),
              bias.typed_data(), static_cast<const T*>(add.untyped_data()),
              static_cast<T*>(y->untyped_data()), Given<uint16_t>(*winner));
    });
  });
}

ffi::Error ConvData(ffi::ThreadPool pool, Array dy, Floats w, Result dx, Ints how) {
  return Guarded([&] {
    const Shape s = ShapeOf(dx->dimensions(), w.dimensions(), how, IsHalf(dy));
    BackwardData(pool, s, dy.untyped_data(), w.typed_data(), dx->untyped_data());
  });
}

ffi::Error ConvWeights(ffi::ThreadPool pool, Array x, Array dy, FloatsResult dw, FloatsResult db,
                       Ints how) {
  return Guarded([&] {
    const Shape s = ShapeOf(x.dimensions(), dw->dimensions(), how, IsHalf(x));
    float* bias = db->element_count() ? db->typed_data() : nullptr;
    BackwardWeights(pool, s, x.untyped_data(), dy.untyped_data(), dw->typed_data(), bias);
  });
}

// `residual` is empty where there is none; `winner` where windows are single pixels.
ffi::Error NormForwardCall(ffi::ThreadPool pool, Array x, Floats scale, Floats bias, Array residual,
                           Result y, ffi::ResultBuffer<ffi::DataType::U16> winner,
                           FloatsResult mean, FloatsResult var, Ints window, float epsilon,
                           bool relu) {
  return Guarded([&] {
    const auto d = x.dimensions();
    const Pool s{d[0], d[1], d[2], d[3], window[0], window[1], relu};
    if (!x.element_count()) {
      Zero(mean->typed_data(), mean->size_bytes());
      return Zero(var->typed_data(), var->size_bytes());
    }
    Typed(IsHalf(x), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      NormForward(pool, s, epsilon, static_cast<const T*>(x.untyped_data()), scale.typed_data(),
                  bias.typed_data(), Given<const T>(residual), static_cast<T*>(y->untyped_data()),
                  winner->typed_data(), mean->typed_data(), var->typed_data());
    });
  });
}

// `winner` is empty where windows are single pixels, `y` where they are not; `dresidual` where no
// gradient of it is wanted that differs from dy.
ffi::Error NormBackwardCall(ffi::ThreadPool pool, Array x, Floats scale, Floats mean, Floats var,
                            ffi::Buffer<ffi::DataType::U16> winner, Array y, Array dy, Result dx,
                            FloatsResult dscale, FloatsResult dbias, Result dresidual, Ints window,
                            float epsilon, bool relu) {
  return Guarded([&] {
    const auto d = x.dimensions();
    const Pool s{d[0], d[1], d[2], d[3], window[0], window[1], relu};
    if (!x.element_count()) {
      Zero(dscale->typed_data(), dscale->size_bytes());
      return Zero(dbias->typed_data(), dbias->size_bytes());
    }
    Typed(IsHalf(x), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      NormBackward(pool, s, epsilon, static_cast<const T*>(x.untyped_data()), scale.typed_data(),
                   mean.typed_data(), var.typed_data(), winner.typed_data(), Given<const T>(y),
                   static_cast<const T*>(dy.untyped_data()), static_cast<T*>(dx->untyped_data()),
                   dscale->typed_data(), dbias->typed_data(), Given<T>(*dresidual));
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
                 static_cast<T*>(y->untyped_data()), Given<uint16_t>(*winner));
    });
  });
}

ffi::Error MaxBackwardCall(ffi::ThreadPool pool, ffi::Buffer<ffi::DataType::U16> winner, Array dy,
                           Result dx, Ints how) {
  return Guarded([&] {
    if (!dy.element_count()) return Zero(dx->untyped_data(), dx->size_bytes());
    const Window s = WindowOf(dx->dimensions(), dy.dimensions(), how);
    Typed(IsHalf(dy), [&](auto* t) {
      using T = std::remove_pointer_t<decltype(t)>;
      MaxBackward(pool, s, winner.typed_data(), static_cast<const T*>(dy.untyped_data()),
                  static_cast<T*>(dx->untyped_data()));
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
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Arg<Floats>().Arg<Array>()
        .Ret<Array>().Ret<U16>().Attr<Ints>("how").Attr<Ints>("window").Attr<bool>("relu"));
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
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Arg<Floats>().Arg<Array>()
        .Ret<Array>().Ret<U16>().Ret<Floats>().Ret<Floats>().Attr<Ints>("window")
        .Attr<float>("epsilon").Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    norm_backward, NormBackwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
        .Arg<U16>().Arg<Array>().Arg<Array>().Ret<Array>().Ret<Floats>().Ret<Floats>().Ret<Array>()
        .Attr<Ints>("window").Attr<float>("epsilon").Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    max_forward, MaxForwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>().Ret<U16>()
        .Attr<Ints>("how"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    max_backward, MaxBackwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<U16>().Arg<Array>().Ret<Array>()
        .Attr<Ints>("how"));
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
