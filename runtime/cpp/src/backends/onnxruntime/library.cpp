#include "backends/onnxruntime/library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr std::size_t most_reason = 300;  // characters of what ONNX Runtime says is wrong
constexpr int newest_needed = 20;         // the newest version of the C API whose functions are used here

std::string library_path(const std::string& asked) {
  if (!asked.empty()) return asked;
  const char* named = std::getenv("STARFLOW_ONNXRUNTIME");
  if (named != nullptr && *named != '\0') return named;
  return std::string(ONNXRUNTIME_LIBRARY).empty() ? "libonnxruntime.so.1" : ONNXRUNTIME_LIBRARY;
}

}  // namespace

const OnnxRuntime& OnnxRuntime::load(const std::string& library) {
  static std::mutex one_at_a_time;
  static std::map<std::string, std::unique_ptr<OnnxRuntime>> loaded;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  std::unique_ptr<OnnxRuntime>& found = loaded[library_path(library)];
  if (!found) found.reset(new OnnxRuntime(library_path(library)));
  return *found;
}

OnnxRuntime::OnnxRuntime(const std::string& library) {
  // It records sessions and sends them, unless it is told not to before it is loaded.
  ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    backend_error(std::string("ONNX Runtime cannot be loaded (") + ::dlerror() +
                  "); name its library in STARFLOW_ONNXRUNTIME");
  using GetApiBase = const OrtApiBase*(ORT_API_CALL*)();
  const auto get_base = reinterpret_cast<GetApiBase>(::dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) backend_error(library + ": is not ONNX Runtime; name its library in STARFLOW_ONNXRUNTIME");
  const OrtApiBase& base = *get_base();
  release_ = base.GetVersionString();
  const std::size_t dot = release_.find('.');
  minor_ = dot == std::string::npos ? 0 : static_cast<int>(std::strtol(release_.c_str() + dot + 1, nullptr, 10));
  // Releases below what bundles need are not even asked for their functions.
  api_ = minor_ < newest_needed ? nullptr : base.GetApi(std::min(ORT_API_VERSION, newest_needed));
  if (api_ == nullptr) backend_error(library + ": is ONNX Runtime " + release_ + "; this needs 1.25 or newer");
  try {
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "starflow",
                          &environment_));  // what it reports as an error it also returns
    const char* telemetry = std::getenv("ORT_DISABLE_TELEMETRY");
    if (telemetry == nullptr || std::string(telemetry) != "0") check(api_->DisableTelemetryEvents(environment_));
  } catch (const OnnxRuntimeFailure& failure) {
    backend_error(library + ": ONNX Runtime does not start (" + failure.what() + ")");
  }
}

void OnnxRuntime::check(OrtStatus* status) const {
  if (status == nullptr) return;
  std::string reason = api_->GetErrorMessage(status);
  api_->ReleaseStatus(status);
  const std::string code = "[ONNXRuntimeError] : ";  // before it: a place in its sources; after it: a number and a name
  if (const std::size_t found = reason.find(code); found != std::string::npos) {
    const std::size_t number = reason.find(" : ", found + code.size()), name = reason.find(" : ", number + 1);
    if (name != std::string::npos) reason = reason.substr(name + 3);
  }
  reason = reason.substr(0, std::min(reason.find('\n'), most_reason));
  throw OnnxRuntimeFailure(reason.empty() ? "no reason given" : reason);
}

}  // namespace starflow
