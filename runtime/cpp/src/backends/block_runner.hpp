// The interface of a backend for autoregressive flows: one flow block, decoded token by token or several tokens
// together. The order of runs is here, once for all backends; a backend adds buffers and a way to run the step graph.
#pragma once

#include <map>
#include <vector>

#include "bundle/manifest.hpp"

namespace starflow {

// The inputs of one flow block for a sequence.
struct BlockInputs {
  std::vector<float> noise;         // [B, T, D] in block order
  std::vector<float> condition;     // [rows, m, width], [conditional, null] rows if the block is guided
  std::vector<std::int64_t> label;  // [rows], for models of class labels
  std::map<std::string, std::vector<float>> scalars;  // by role: guidance weights [B] and inverse temperature [rows]
};

// Runs the step graph of one flow block. It owns buffers and caches, and keeps the position between calls: `prefill`,
// then `advance` and `iterate` until all tokens are decoded, then `read`.
//
// Buffers have the names of the graph's inputs and outputs. One whose shape depends on the number of tokens S exists
// for each S that occurs. `previous` for S = 1 holds the token before the next one: the token output shares its memory,
// so a step feeds the next.
class BlockRunner {
 public:
  // `most_tokens` is the largest number of tokens in one run.
  BlockRunner(const Graph& graph, const Block& block, const Manifest& manifest, std::int64_t most_tokens);
  virtual ~BlockRunner() = default;
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  // Starts a sequence: stores its inputs and writes the condition into the caches.
  void prefill(const BlockInputs& inputs);
  // Decodes the next `steps` tokens one by one.
  virtual void advance(int steps) = 0;
  // Decodes the tokens of a chunk or a window together, or those that a student made, and returns the number of passes.
  // `made` [B, T, D] are the student's, from which passes go on; null for other segments, which have a guess of their
  // own.
  int iterate(const Segment& segment, const float* made = nullptr);
  // The decoded sequence, [B, T, D] in block order.
  void read(std::vector<float>& tokens) const;
  // Zeroes the caches: NaN or infinity would reach later sequences through masked positions.
  virtual void clear();

  const Block& block() const { return block_; }

 protected:
  // What a backend adds. `count` is S, if the buffer depends on it.
  virtual void store(const std::string& name, const void* values, int count) = 0;
  virtual const void* fetch(const std::string& name, int count) const = 0;  // on the host, until the next run
  virtual void run(int count) = 0;  // at the current position, without moving it
  // Several runs at one position. Each takes the outputs of the one before it; returns the last ones.
  virtual const float* repeat(int count, int passes);
  virtual void seek(std::int64_t position) = 0;
  virtual std::int64_t tell() const = 0;

  // Runs the last two steps on marked caches: only their positions may change, in the memory that was bound.
  void check_steps();

  const Graph& graph() const { return graph_; }

 private:
  using Tokens = std::vector<float>;  // [B, n, D]

  void fill(const TensorSpec& spec, std::uint8_t value);
  const float* run_on(std::int64_t position, int count);  // with the inputs in `inputs_`; the outputs, [B, count, D]
  void pass(std::int64_t start, int offset, int count);   // over some of `tokens_`, which it updates
  void gather_inputs(int offset, int count);
  int converge(std::int64_t start, const Segment& chunk);
  int refresh(std::int64_t start, int tokens);
  int slide(std::int64_t start, const Segment& window);
  void guess(std::int64_t start, const Segment& segment, const float* made);
  double change(const float* found, int image, int tokens, const Segment& chunk) const;

  const Graph& graph_;
  const Block& block_;
  std::int64_t batch_, width_;
  int max_chunk_;
  Tokens noise_, first_, part_;
  Tokens before_, tokens_,
      inputs_;     // of the segment under way: the token before it, its tokens, and the inputs of a run
  int count_ = 0;  // its number of tokens
  std::map<std::int64_t, Tokens> accepted_;  // by position, tokens that a later pass overwrote in `samples`
};

}  // namespace starflow
