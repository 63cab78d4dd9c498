#include "backends/block_runner.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr std::uint8_t mark = 7;  // a value that no cache holds after a step

// The bytes of one value, 0 or the mark.
std::vector<char> item_of(Type type, std::uint8_t value) {
  std::vector<char> item(item_bytes(type), 0);
  const float number = value;
  std::uint32_t bits = 0;
  std::memcpy(&bits, &number, sizeof bits);
  const std::uint16_t half = value == mark ? 0x4700 : 0, brain = static_cast<std::uint16_t>(bits >> 16);
  switch (type) {
    case Type::float32:
      std::memcpy(item.data(), &number, sizeof number);
      break;
    case Type::float16:
      std::memcpy(item.data(), &half, sizeof half);
      break;
    case Type::bfloat16:
      std::memcpy(item.data(), &brain, sizeof brain);
      break;
    case Type::int64:
    case Type::int8:
      item[0] = static_cast<char>(value);
      break;
  }
  return item;
}

// Copies `count` tokens of each image between sequences of different lengths, [B, n, D].
struct Sequence {
  std::int64_t tokens, first;
};

void copy_tokens(const float* from, Sequence source, float* to, Sequence target, std::int64_t count,
                 std::int64_t batch, std::int64_t width) {
  for (std::int64_t image = 0; image < batch; ++image) {
    const float* begin = from + (image * source.tokens + source.first) * width;
    std::copy_n(begin, count * width, to + (image * target.tokens + target.first) * width);
  }
}

}  // namespace

BlockRunner::BlockRunner(const Graph& graph, const Block& block, const Manifest& manifest, std::int64_t most_tokens)
    : graph_(graph),
      block_(block),
      batch_(manifest.batch),
      width_(manifest.model.values_of(block.patch)),
      max_chunk_(static_cast<int>(most_tokens)) {}

void BlockRunner::clear() {
  for (const TensorSpec& spec : graph_.inputs) {
    if (spec.role == "cache") fill(spec, 0);
  }
}

void BlockRunner::fill(const TensorSpec& spec, std::uint8_t value) {
  const std::vector<char> item = item_of(spec.type, value);
  std::vector<char> content;
  for (std::int64_t index = 0; index < spec.values(1); ++index) content.insert(content.end(), item.begin(), item.end());
  store(spec.name, content.data(), 1);
}

void BlockRunner::prefill(const BlockInputs& inputs) {
  const std::int64_t tokens = block_.capacity - block_.prefix + block_.first_token, m = block_.prefix;
  for (const TensorSpec& spec : graph_.inputs) {
    const auto scalar = inputs.scalars.find(spec.role);
    if (scalar != inputs.scalars.end()) store(spec.name, scalar->second.data(), 1);
    if (spec.role == "label") store(spec.name, inputs.label.data(), 1);
  }
  noise_.assign(static_cast<std::size_t>(batch_ * block_.capacity * width_), 0.0F);
  copy_tokens(inputs.noise.data(), {tokens, block_.first_token}, noise_.data(), {block_.capacity, m},
              block_.capacity - m, batch_, width_);
  store("noise", noise_.data(), 1);
  first_.resize(static_cast<std::size_t>(batch_ * block_.first_token * width_));
  copy_tokens(inputs.noise.data(), {tokens, 0}, first_.data(), {block_.first_token, 0}, block_.first_token, batch_,
              width_);
  accepted_.clear();
  seek(0);
  const std::int64_t rows = block_.rows,
                     wide = m > 0 ? static_cast<std::int64_t>(inputs.condition.size()) / (rows * m) : 0;
  for (std::int64_t start = 0; start < m; start += max_chunk_) {
    const std::int64_t count = std::min<std::int64_t>(max_chunk_, m - start);
    part_.resize(static_cast<std::size_t>(rows * count * wide));
    copy_tokens(inputs.condition.data(), {m, start}, part_.data(), {count, 0}, count, static_cast<int>(rows),
                static_cast<int>(wide));
    store("condition", part_.data(), static_cast<int>(count));
    run(static_cast<int>(count));
    seek(start + count);
  }
  if (block_.first_token > 0) store("previous", first_.data(), 1);
}

void BlockRunner::read(std::vector<float>& tokens) const {
  const std::int64_t total = block_.capacity - block_.prefix + block_.first_token, first = block_.first_token;
  const std::int64_t shift = first - block_.prefix;  // from a position to its token
  tokens.resize(static_cast<std::size_t>(batch_ * total * width_));
  copy_tokens(first_.data(), {first, 0}, tokens.data(), {total, 0}, first, batch_, width_);
  const auto* samples = static_cast<const float*>(fetch("samples", 1));
  copy_tokens(samples, {block_.capacity, block_.prefix}, tokens.data(), {total, first}, total - first, batch_, width_);
  for (const auto& [start, own] : accepted_) {
    const std::int64_t count = static_cast<std::int64_t>(own.size()) / (batch_ * width_);
    copy_tokens(own.data(), {count, 0}, tokens.data(), {total, start + shift}, count, batch_, width_);
  }
}

int BlockRunner::iterate(const Segment& segment, const float* made) {
  if (segment.tokens == 1) {  // one pass is exact, and the single-step buffers feed themselves
    advance(1);
    return 1;
  }
  const std::int64_t start = tell();
  guess(start, segment, made);
  int passes = segment.passes;
  if (segment.kind == Segment::Kind::window) {
    passes = slide(start, segment);
  } else if (segment.tolerance) {
    passes = converge(start, segment);
  } else {
    gather_inputs(0, count_);
    seek(start);
    store("previous", inputs_.data(), count_);
    std::copy_n(repeat(count_, segment.passes), tokens_.size(), tokens_.begin());
    if (segment.exact_caches && passes < count_) passes += refresh(start, count_);
  }
  inputs_.resize(static_cast<std::size_t>(batch_ * width_));
  copy_tokens(tokens_.data(), {count_, count_ - 1}, inputs_.data(), {1, 0}, 1, batch_, width_);
  store("previous", inputs_.data(), 1);
  seek(start + count_);
  return passes;
}

void BlockRunner::guess(std::int64_t start, const Segment& segment, const float* made) {
  count_ = segment.tokens;
  // The token before the segment, or zeros if there is none: the graph replaces them by its start token.
  before_.assign(static_cast<std::size_t>(batch_ * width_), 0.0F);
  if (start > block_.prefix || block_.first_token > 0)
    std::copy_n(static_cast<const float*>(fetch("previous", 1)), before_.size(), before_.begin());
  tokens_.assign(static_cast<std::size_t>(batch_ * count_ * width_), 0.0F);
  if (made != nullptr) {
    copy_tokens(made, {count_ + block_.first_token, block_.first_token}, tokens_.data(), {count_, 0}, count_, batch_,
                width_);
  } else if (segment.guess == Segment::Guess::noise) {
    copy_tokens(noise_.data(), {block_.capacity, start}, tokens_.data(), {count_, 0}, count_, batch_, width_);
  } else if (segment.guess == Segment::Guess::previous) {
    for (int token = 0; token < count_; ++token)
      copy_tokens(before_.data(), {1, 0}, tokens_.data(), {count_, token}, 1, batch_, width_);
  }
}

void BlockRunner::gather_inputs(int offset, int count) {
  inputs_.resize(static_cast<std::size_t>(batch_ * count * width_));
  if (offset > 0) {
    copy_tokens(tokens_.data(), {count_, offset - 1}, inputs_.data(), {count, 0}, count, batch_, width_);
  } else {
    copy_tokens(before_.data(), {1, 0}, inputs_.data(), {count, 0}, 1, batch_, width_);
    copy_tokens(tokens_.data(), {count_, 0}, inputs_.data(), {count, 1}, count - 1, batch_, width_);
  }
}

const float* BlockRunner::run_on(std::int64_t position, int count) {
  seek(position);
  store("previous", inputs_.data(), count);
  run(count);
  return static_cast<const float*>(fetch("x", count));
}

const float* BlockRunner::repeat(int count, int passes) {
  run(count);
  const auto* found = static_cast<const float*>(fetch("x", count));
  for (int done = 1; done < passes; ++done) {
    copy_tokens(found, {count, 0}, inputs_.data(), {count, 1}, count - 1, batch_, width_);
    store("previous", inputs_.data(), count);
    run(count);
    found = static_cast<const float*>(fetch("x", count));
  }
  return found;
}

void BlockRunner::pass(std::int64_t start, int offset, int count) {
  gather_inputs(offset, count);
  copy_tokens(run_on(start + offset, count), {count, 0}, tokens_.data(), {count_, offset}, count, batch_, width_);
}

// Writes the keys of accepted tokens into the caches, by a pass whose outputs are not used.
int BlockRunner::refresh(std::int64_t start, int tokens) {
  accepted_[start] = tokens_;
  gather_inputs(0, tokens);
  run_on(start, tokens);
  return 1;
}

double BlockRunner::change(const float* found, int image, int tokens, const Segment& chunk) const {
  const auto size = static_cast<std::size_t>(tokens * width_), first = static_cast<std::size_t>(image) * size;
  const std::size_t end = chunk.whole_batch ? static_cast<std::size_t>(batch_) * size : first + size;
  double moved = 0, total = 0, largest = 0;
  for (std::size_t index = chunk.whole_batch ? 0 : first; index < end; ++index) {
    const double difference = static_cast<double>(found[index] - tokens_[index]);
    moved += difference * difference;
    total += static_cast<double>(found[index]) * static_cast<double>(found[index]);
    if (!(std::abs(difference) <= largest)) largest = std::abs(difference);
  }
  return chunk.largest_change ? largest : moved / total;
}

// Runs passes over a chunk until every image has converged. An image that has converged keeps its tokens.
int BlockRunner::converge(std::int64_t start, const Segment& chunk) {
  const auto batch = static_cast<std::size_t>(batch_), size = static_cast<std::size_t>(count_ * width_),
             one = static_cast<std::size_t>(width_);
  const double tolerance = chunk.tolerance.value_or(0);
  std::vector<char> going(batch, 1), fresh(batch, 0);  // fresh: the caches hold the keys of the image's accepted tokens
  std::vector<double> changes(batch);
  const auto any = [](const std::vector<char>& flags) { return std::count(flags.begin(), flags.end(), 1) > 0; };
  int done = 0;
  gather_inputs(0, count_);
  while (any(going) && done < chunk.passes) {
    for (std::size_t image = 0; image < batch; ++image) {
      // `reference` caches keep the keys of the inputs of an image's last pass.
      if (chunk.exact_caches || going[image])
        std::copy_n(tokens_.data() + image * size, size - one, inputs_.data() + image * size + one);
    }
    const float* found = run_on(start, count_);
    for (std::size_t image = 0; image < batch; ++image)
      changes[image] = change(found, static_cast<int>(image), count_, chunk);
    for (std::size_t image = 0; image < batch; ++image) {
      const float *begin = found + image * size, *old = tokens_.data() + image * size;
      fresh[image] = going[image] ? std::equal(begin, begin + size, old) : chunk.exact_caches;
      if (going[image]) std::copy_n(begin, size, tokens_.data() + image * size);
      // NaN ends the iteration as well; the sampling loop reports it after it has read the sequence.
      going[image] = going[image] && changes[image] >= tolerance;
    }
    ++done;
  }
  if (chunk.exact_caches) {
    accepted_[start] = tokens_;
    if (done < count_ && std::count(fresh.begin(), fresh.end(), 0) > 0) done += refresh(start, count_);
  }
  return done;
}

// Decodes by a window that moves on as its first tokens converge; the number of passes.
int BlockRunner::slide(std::int64_t start, const Segment& window) {
  int offset = 0, passes = 0;
  for (; offset < count_; ++passes) {
    const int count = std::min(window.width, count_ - offset);
    if (!window.tolerance) {
      pass(start, offset, count);
      offset += window.advances[static_cast<std::size_t>(passes)];
      continue;
    }
    gather_inputs(offset, count);
    const float* found = run_on(start + offset, count);
    // The first token had final inputs, and so had each later one whose predecessors did not change.
    int final_tokens = count;
    for (int token = count - 2; token >= 0; --token) {
      double largest = 0;
      for (int image = 0; image < batch_; ++image) {
        double sum = 0;
        for (int d = 0; d < width_; ++d) {
          const double moved =
              static_cast<double>(found[(image * count + token) * width_ + d] -
                                  tokens_[static_cast<std::size_t>((image * count_ + offset + token) * width_ + d)]);
          sum += moved * moved;
        }
        if (!(sum <= largest)) largest = sum;
      }
      if (!(std::sqrt(largest / static_cast<double>(width_)) < *window.tolerance)) final_tokens = token + 1;
    }
    copy_tokens(found, {count, 0}, tokens_.data(), {count_, offset}, count, batch_, width_);
    offset += final_tokens;
  }
  return passes;
}

void BlockRunner::check_steps() {
  const std::string where = "flow block " + std::to_string(block_.index);
  const std::int64_t capacity = block_.capacity, first = std::max<std::int64_t>(capacity - 2, 0);
  for (const TensorSpec& spec : graph_.inputs) {
    if (!spec.updated_by.empty()) fill(spec, mark);
  }
  seek(first);
  advance(static_cast<int>(capacity - first));
  for (const TensorSpec& spec : graph_.inputs) {
    if (spec.updated_by.empty()) continue;
    const std::vector<std::int64_t>& shape = spec.shape;  // [..., capacity, width]
    const std::vector<char> item = item_of(spec.type, mark);
    std::vector<char> marked;  // a position that no step wrote
    for (std::int64_t index = 0; index < shape.back(); ++index) marked.insert(marked.end(), item.begin(), item.end());
    std::vector<char> written(static_cast<std::size_t>(capacity), 0);
    const auto* content = static_cast<const char*>(fetch(spec.name, 1));
    const std::int64_t sequences = spec.values(1) / (capacity * shape.back());
    for (std::int64_t row = 0; row < sequences * capacity; ++row) {
      if (std::memcmp(content + static_cast<std::size_t>(row) * marked.size(), marked.data(), marked.size()) != 0)
        written[static_cast<std::size_t>(row % capacity)] = 1;
    }
    const auto last = static_cast<std::size_t>(first);
    if (std::count(written.begin(), written.begin() + first, 1) > 0 || !written[last])
      backend_error(spec.name + " of " + where + " is not updated in place by this engine");
    if (!written.back()) backend_error(where + ": this engine does not move on from one step to the next");
  }
  for (const TensorSpec& spec : graph_.inputs) {
    if (!spec.updated_by.empty() || spec.role == "previous") fill(spec, 0);
  }
  seek(0);
}

}  // namespace starflow
