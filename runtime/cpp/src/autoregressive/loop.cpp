// The sampling loop: from the deep block down, each flow block turns its noise into tokens. The tokens of a block are
// the noise of the block below. (STARFlow, section 3; TARFlow, section 2.2.)
#include <algorithm>
#include <cmath>

#include "autoregressive/tokens.hpp"
#include "family.hpp"
#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr int tokens_per_report = 16;
constexpr std::size_t most_plan_bytes = std::size_t{64} << 20;

class AutoregressiveLoop : public FamilyLoop {
 public:
  AutoregressiveLoop(const Bundle& bundle, const Manifest& manifest, const Variant& variant, Backend& backend,
                     const std::string& plan)
      : manifest_(manifest), variant_(variant), backend_(backend), runners_(manifest.blocks.size()) {
    if (plan == "auto") {
      const StoredPlan* stored = manifest.plan_for(backend.name(), variant.name);
      if (stored != nullptr) plan_ = stored->decode;
    } else if (plan != "sequential") {
      try {
        plan_ = read_decode_plan(read_regular(plan, most_plan_bytes), plan, manifest);
      } catch (const Error&) {
        throw;
      } catch (const std::runtime_error& error) {
        usage_error("plan " + plan + ": " + error.what() + "; name auto, sequential or a file");
      }
    }
    if (manifest.prior) {
      deviation_ = float32_tensor(bundle.content(*manifest.prior), "standard_deviation", manifest.model.tokens,
                                  manifest.model.token_dim);
      if (deviation_.empty()) {
        bundle_error(bundle.path(*manifest.prior) + ": holds no standard_deviation [" +
                     std::to_string(manifest.model.tokens) + ", " + std::to_string(manifest.model.token_dim) + "]");
      }
    }
  }

  std::size_t work() const override {
    std::int64_t tokens = 0;
    for (const Block& block : manifest_.blocks)
      tokens += block.identity ? 0 : manifest_.model.tokens_of(block.patch);
    return static_cast<std::size_t>(tokens);
  }

  void load() override {
    for (const Block& block : manifest_.blocks) {
      if (!block.identity) runner(block);
    }
  }

  void check(const Request& request) const override {
    for (const Guidance& guidance : request.guidance) {
      if (guidance.weight > 0 && !manifest_.guided) usage_error("this bundle takes no guidance; leave it out");
      if (guidance.weight > 0 && manifest_.guidance_rule == "ratio" &&
          (guidance.annealed || !guidance.scale || !guidance.shift)) {
        usage_error("guidance of STARFlow takes a weight, a schedule and top_only; the other options are for TARFlow");
      }
      if (guidance.start != 0 || guidance.end != 1)
        usage_error("guidance interval is for continuous flows; this bundle takes a schedule over flow blocks");
      if (!guidance.schedule.empty() && guidance.schedule.size() != manifest_.blocks.size()) {
        usage_error("guidance schedule: " + std::to_string(guidance.schedule.size()) + " factors for " +
                    std::to_string(manifest_.blocks.size()) + " flow blocks; give one for each, from block 0 on");
      }
    }
    if (request.attention_temperature != 1 && !manifest_.attention_temperature)
      usage_error("this bundle has no attention temperature; export it with --attention-temperature");
  }

  std::vector<float> run(const Batch& batch, const Request& request, const OnWork& on_work) override {
    const Model& model = manifest_.model;
    std::vector<float> x = model.noise_as_tokens ? batch.noise : patchify(batch.noise, model);
    for (std::size_t index = 0; index < x.size() && !deviation_.empty(); ++index)
      x[index] *= deviation_[index % deviation_.size()];
    for (auto block = manifest_.blocks.rbegin(); block != manifest_.blocks.rend(); ++block) {
      if (!block->identity) sample_block(*block, x, batch, request, on_work);
      if (request.on_block) request.on_block(block->index, batch.first, batch.count, unpatchify(x, model).data());
    }
    return unpatchify(x, model);
  }

 private:
  BlockRunner& runner(const Block& block) {
    std::unique_ptr<BlockRunner>& opened = runners_[static_cast<std::size_t>(block.index)];
    if (!opened) {
      const auto graph = std::find_if(variant_.graphs.begin(), variant_.graphs.end(),
                                      [&](const Graph& each) { return each.block == block.index; });
      opened = backend_.open_block(*graph, block, manifest_);
    }
    return *opened;
  }

  // Turns the noise `x` [B, T, D] of a flow block into its tokens, in raster order.
  void sample_block(const Block& block, std::vector<float>& x, const Batch& batch, const Request& request,
                    const OnWork& on_work) {
    BlockRunner& running = runner(block);
    to_block(x, manifest_.model, block);
    try {
      running.prefill(inputs_of(block, x, batch, request.attention_temperature));
      for (const Segment& segment : plan_.segments(block.index, block.tokens())) decode(running, segment, on_work);
    } catch (...) {
      running.clear();  // nobody has seen whether its caches hold NaN, which would reach the next sequence
      throw;
    }
    running.read(x);
    const auto strange = std::find_if(x.begin(), x.end(), [](float value) { return !std::isfinite(value); });
    if (strange != x.end()) {
      running.clear();
      const Model& model = manifest_.model;
      const std::int64_t token =
          (strange - x.begin()) / model.values_of(block.patch) % model.tokens_of(block.patch);
      backend_error("flow block " + std::to_string(block.index) + " produced NaN or infinity at token " +
                    std::to_string(token));
    }
    from_block(x, manifest_.model, block);
  }

  static void decode(BlockRunner& running, const Segment& segment, const OnWork& on_work) {
    if (segment.kind != Segment::Kind::steps) {
      running.iterate(segment);
      on_work(static_cast<std::size_t>(segment.tokens));
      return;
    }
    for (int start = 0; start < segment.tokens; start += tokens_per_report) {
      const int count = std::min(tokens_per_report, segment.tokens - start);
      running.advance(count);
      on_work(static_cast<std::size_t>(count));
    }
  }

  BlockInputs inputs_of(const Block& block, const std::vector<float>& noise, const Batch& batch,
                        double temperature) const {
    const bool guided = block.rows == 2 * manifest_.batch;
    BlockInputs inputs{noise, {}, batch.conditions.label_rows(guided), {}};
    if (block.prefix > 0) inputs.condition = batch.conditions.token_rows(guided);
    const bool deep = block.index == static_cast<int>(manifest_.blocks.size()) - 1;
    for (const Guidance& guidance : batch.guidance) {
      const double factor = guidance.schedule.empty() ? 1 : guidance.schedule[static_cast<std::size_t>(block.index)];
      const float weight = guidance.top_only && !deep ? 0.0F : static_cast<float>(guidance.weight * factor);
      inputs.scalars["guidance"].push_back(weight);
      inputs.scalars["guidance_scale"].push_back(guidance.scale ? weight : 0.0F);
      inputs.scalars["guidance_shift"].push_back(guidance.shift ? weight : 0.0F);
      inputs.scalars["guidance_anneal"].push_back(guidance.annealed ? 1.0F : 0.0F);
    }
    std::vector<float>& inverse = inputs.scalars["inverse_temperature"];
    inverse.assign(static_cast<std::size_t>(block.rows), 1.0F / static_cast<float>(temperature));
    // TARFlow applies it to the unguided branch only.
    if (manifest_.model.family == "tarflow") std::fill_n(inverse.begin(), manifest_.batch, 1.0F);
    return inputs;
  }

  const Manifest& manifest_;
  const Variant& variant_;
  Backend& backend_;
  DecodePlan plan_;
  std::vector<float> deviation_;  // [T, D] of the prior; empty if it is 1
  std::vector<std::unique_ptr<BlockRunner>> runners_;
};

}  // namespace

std::unique_ptr<FamilyLoop> open_autoregressive(const Bundle& bundle, const Manifest& manifest, const Variant& variant,
                                                Backend& backend, const std::string& plan) {
  return std::make_unique<AutoregressiveLoop>(bundle, manifest, variant, backend, plan);
}

}  // namespace starflow
