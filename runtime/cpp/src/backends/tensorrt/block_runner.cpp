#include "backends/tensorrt/block_runner.hpp"

#include <algorithm>

namespace starflow {

TensorrtBlockRunner::TensorrtBlockRunner(GraphEngine& engine, const Block& block, const Manifest& manifest,
                                         const Scratch& scratch, Queue queue)
    : BlockRunner(engine.graph(), block, manifest, std::min(manifest.max_chunk, engine.max_tokens())),
      engine_(engine),
      scratch_(scratch),
      queue_(queue),
      batch_(static_cast<std::size_t>(manifest.batch)),
      prefix_(block.prefix),
      buffers_(queue, engine.graph(), manifest.max_chunk),
      drain_{queue} {
  runs_of(1, false);
  two_steps_ = capture_two_steps();
  check_steps();
  buffers_.clear_caches();  // and with the caches the memory on the host that the check needed
}

const CapturedRuns& TensorrtBlockRunner::runs_of(int count, bool prefilling) {
  // A single token of the condition has a graph of its own, if steps do not read the condition.
  const bool conditioned = count > 1 || (prefilling && engine_.steps_lack_condition());
  const std::pair<int, bool> key{count, conditioned};
  const auto found = runs_.find(key);
  if (found != runs_.end()) return found->second;
  CapturedRuns runs = engine_.capture(count, conditioned, {buffers_.addresses()}, scratch_, queue_.stream,
                                      [this, count] { feed_back(count); });
  return runs_.emplace(key, std::move(runs)).first->second;
}

CapturedRuns TensorrtBlockRunner::capture_two_steps() {
  const Addresses there = buffers_.addresses();
  Addresses back = there;
  std::swap(back.at("previous"), back.at("x"));
  std::swap(back.at("position"), back.at("position_next"));
  return engine_.capture(1, false, {there, back}, scratch_, queue_.stream, [] {});
}

void TensorrtBlockRunner::feed_back(int count) {
  const auto copy = [&](const char* target, std::size_t target_offset, const char* source, std::size_t source_offset,
                        std::size_t bytes) {
    queue_.gpu.copy(static_cast<std::byte*>(buffers_.address(target)) + target_offset,
                    static_cast<const std::byte*>(buffers_.address(source)) + source_offset, bytes, queue_.stream);
  };
  if (count == 1) {
    copy("previous", 0, "x", 0, buffers_.bytes("x", 1));
    copy("position", 0, "position_next", 0, buffers_.bytes("position", 1));
    return;
  }
  // Every token of x except the last of each image goes to the place of the next: previous[:, 1:] = x[:, :-1].
  const std::size_t token = buffers_.bytes("x", 1) / batch_, image = token * static_cast<std::size_t>(count);
  for (std::size_t first = 0; first < batch_ * image; first += image)
    copy("previous", first + token, "x", first, image - token);
}

void TensorrtBlockRunner::run(int count) {
  queue_.gpu.select();
  runs_of(count, position_ < prefix_).launch(queue_, 1);
  if (count == 1) seek(position_);  // its graph moved the position on
}

const float* TensorrtBlockRunner::repeat(int count, int passes) {
  queue_.gpu.select();
  runs_of(count, false).launch(queue_, passes);
  return static_cast<const float*>(fetch("x", count));
}

void TensorrtBlockRunner::seek(std::int64_t position) {
  position_ = position;
  store("position", &position_, 1);
}

void TensorrtBlockRunner::advance(int steps) {
  queue_.gpu.select();
  two_steps_.launch(queue_, steps / 2);
  runs_of(1, false).launch(queue_, steps % 2);
  position_ += steps;
}

}  // namespace starflow
