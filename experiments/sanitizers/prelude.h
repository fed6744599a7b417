// Goes before onednn.cc when it is compiled for a sanitizer. XLA is not compiled for ThreadSanitizer,
// which must be told what it orders: a task runs after it was scheduled, and a call begins after the
// calls that ended before. Nothing is told of calls that overlap.

#include <malloc.h>

#include "xla/ffi/api/ffi.h"

#ifdef __SANITIZE_THREAD__

extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);

template <typename F>
struct Told {
  F body;
  explicit Told(F&& f) : body(std::move(f)) {}
  Told(Told&& other) : body(std::move(other.body)) { __tsan_release(this); }  // Where it stays.
  void operator()() {
    __tsan_acquire(this);
    body();
  }
};

inline char ended;

#define Schedule(...) Schedule(Told(__VA_ARGS__))
#undef XLA_FFI_DEFINE_HANDLER_SYMBOL
#define XLA_FFI_DEFINE_HANDLER_SYMBOL(fn, impl, ...)            \
  extern "C" XLA_FFI_Error* fn(XLA_FFI_CallFrame* call_frame) { \
    XLA_FFI_DEFINE_HANDLER(handler, impl, ##__VA_ARGS__);       \
    __tsan_acquire(&ended);                                     \
    XLA_FFI_Error* error = (*handler)(call_frame);              \
    __tsan_release(&ended);                                     \
    return error;                                               \
  }
#endif
