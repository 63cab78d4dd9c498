// Counts what the library allocates with `new` between two reports of progress, and prints it. ONNX Runtime's allocations, by the
// same `new`, are told from the library's by who calls: the first caller beyond this program and the standard library.
#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <starflow/starflow.hpp>

namespace {
std::atomic<std::size_t> allocations{0};

bool is_the_librarys() {
  Dl_info own{};
  dladdr(reinterpret_cast<void*>(&is_the_librarys), &own);
  void* callers[8];
  const int count = backtrace(callers, 8);
  for (int index = 0; index < count; ++index) {
    Dl_info place{};
    if (dladdr(callers[index], &place) == 0 || place.dli_fbase == own.dli_fbase || std::strstr(place.dli_fname, "libstdc++") != nullptr) continue;
    return std::strstr(place.dli_fname, "libstarflow") != nullptr;
  }
  return false;
}

void* allocate(std::size_t bytes) {
  thread_local bool looking = false;  // `backtrace` allocates when it is first called
  if (!looking) {
    looking = true;
    if (is_the_librarys()) ++allocations;
    looking = false;
  }
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

int main(int, char** values) {
  starflow::Options options;
  options.threads = 1;
  starflow::Sampler sampler = starflow::Sampler::open(values[1], options);
  const auto noise = sampler.noise(1, 7);
  sampler.generate(noise);  // opens the graphs and binds their buffers
  starflow::Request request;
  std::size_t before = 0, between = 0, reports = 0;
  request.progress = [&](std::size_t done, std::size_t) {
    if (done % 49 > 16) between += allocations - before;  // not what a flow block allocates when it starts
    ++reports;
    before = allocations;
    return true;
  };
  sampler.generate(noise, request);
  std::printf("%zu allocations, %zu reports, %zu in all\n", between, reports, allocations.load());
}
