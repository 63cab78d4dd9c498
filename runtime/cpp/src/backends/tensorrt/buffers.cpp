#include "backends/tensorrt/buffers.hpp"

#include <cstring>

#include "plain/error.hpp"

namespace starflow {

Held allocate(Gpu& gpu, std::size_t bytes, const std::string& what) {
  Held made = gpu.allocate(bytes);
  if (made) return made;
  const auto [free, total] = gpu.memory();
  backend_error(what + " needs " + std::to_string(bytes) + " bytes of GPU memory, " + std::to_string(free) + " of " +
                std::to_string(total) + " are free; free some, or export with a smaller --batch");
}

GraphBuffers::GraphBuffers(Queue queue, const Graph& graph, std::int64_t most_tokens)
    : queue_(queue), most_tokens_(most_tokens), drain_{queue} {
  for (const TensorSpec& spec : graph.inputs) {
    if (!spec.updated_by.empty()) shared_[spec.updated_by] = spec.name;
  }
  for (const auto* specs : {&graph.inputs, &graph.outputs}) {
    for (const TensorSpec& spec : *specs) {
      if (shared_.count(spec.name) > 0) continue;
      const std::size_t size = static_cast<std::size_t>(spec.values(most_tokens)) * item_bytes(spec.type);
      Buffer made{&spec, allocate(queue.gpu, size, spec.name + " of flow block " + std::to_string(graph.block)), {}};
      if (spec.role != "cache") pinned(made);
      queue.gpu.zero(made.device.get(), size, queue.stream);
      buffers_.emplace(spec.name, std::move(made));
    }
  }
}

const GraphBuffers::Buffer& GraphBuffers::buffer(const std::string& name) const {
  const auto shared = shared_.find(name);
  return buffers_.at(shared == shared_.end() ? name : shared->second);
}

void* GraphBuffers::pinned(const Buffer& buffer) const {
  if (!buffer.pinned)
    buffer.pinned = queue_.gpu.allocate_pinned(static_cast<std::size_t>(buffer.spec->values(most_tokens_)) *
                                               item_bytes(buffer.spec->type));
  return buffer.pinned.get();
}

Addresses GraphBuffers::addresses() const {
  Addresses found;
  for (const auto& [name, each] : buffers_) found[name] = each.device.get();
  for (const auto& [output, input] : shared_) found[output] = found.at(input);
  return found;
}

std::size_t GraphBuffers::bytes(const std::string& name, std::int64_t count) const {
  const TensorSpec& spec = *buffer(name).spec;
  return static_cast<std::size_t>(spec.values(count)) * item_bytes(spec.type);
}

void GraphBuffers::store(const std::string& name, const void* values, std::int64_t count) {
  const Buffer& target = buffer(name);
  const std::size_t size = bytes(name, count);
  queue_.gpu.select();
  void* staged = pinned(target);
  std::memcpy(staged, values, size);
  queue_.gpu.upload(target.device.get(), staged, size, queue_.stream);
  queue_.gpu.synchronize(queue_.stream);
}

const void* GraphBuffers::fetch(const std::string& name, std::int64_t count) const {
  const Buffer& source = buffer(name);
  queue_.gpu.select();
  void* staged = pinned(source);
  queue_.gpu.download(staged, source.device.get(), bytes(name, count), queue_.stream);
  queue_.gpu.synchronize(queue_.stream);
  return staged;
}

void GraphBuffers::clear_caches() {
  queue_.gpu.select();
  for (const auto& [name, buffer] : buffers_) {
    if (buffer.spec->role != "cache") continue;
    queue_.gpu.zero(buffer.device.get(), bytes(name, most_tokens_), queue_.stream);
    buffer.pinned.reset();
  }
}

}  // namespace starflow
