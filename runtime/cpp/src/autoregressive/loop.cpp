// The sampling loop: from the deep block down, each flow block turns its noise into tokens. The tokens of a block are
// the noise of the block below. (STARFlow, section 3; TARFlow, section 2.2.)
#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>

#include "autoregressive/tokens.hpp"
#include "family.hpp"
#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr int tokens_per_report = 16;
constexpr std::size_t most_plan_bytes = std::size_t{64} << 20;
constexpr int most_passes = 100'000;

// The passes N of a plan called `student` or `student+N`; nothing if `plan` is called otherwise.
std::optional<int> student_passes(const std::string& plan) {
  const std::string name = "student";
  if (plan == name) return 0;
  const std::string digits = plan.rfind(name + "+", 0) == 0 ? plan.substr(name.size() + 1) : "";
  if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos) return {};
  const int passes = std::stoi(digits);
  if (passes > most_passes) usage_error("plan " + plan + ": give at most " + std::to_string(most_passes) + " passes");
  return passes;
}

// A guidance weight, as short as it is exact enough to be recognised.
std::string shortest(double weight) {
  std::ostringstream text;
  text << weight;
  return text.str();
}

class AutoregressiveLoop : public FamilyLoop {
 public:
  AutoregressiveLoop(const Bundle& bundle, const Manifest& manifest, const Variant& variant, Backend& backend,
                     const std::string& plan)
      : manifest_(manifest), variant_(variant), backend_(backend), runners_(manifest.blocks.size()) {
    const std::optional<int> passes = student_passes(plan);
    if (plan == "auto" || passes) {
      const StoredPlan* stored = manifest.plan_for(backend.name(), variant.name);
      if (stored != nullptr) plan_ = stored->decode;
      if (passes) plan_ = with_students(plan, *passes);
    } else if (plan != "sequential") {
      try {
        plan_ = read_decode_plan(read_regular(plan, most_plan_bytes), plan, manifest);
      } catch (const Error&) {
        throw;
      } catch (const std::runtime_error& error) {
        usage_error("plan " + plan + ": " + error.what() + "; name auto, sequential, student or a file");
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
      const Segment* student = plan_.student(block.index);
      if (!block.identity && (student == nullptr || student->passes > 0)) runner(block);
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
    for (const Student& student : manifest_.students) {
      if (plan_.student(student.block) != nullptr) check_student(student, request);
    }
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

  // The plan in use with every flow block that has a student made by it.
  DecodePlan with_students(const std::string& name, int passes) const {
    if (manifest_.students.empty())
      usage_error("plan " + name + ": this bundle has no students; `starflow export --student` adds them");
    DecodePlan made;
    for (const Student& student : manifest_.students) {
      Segment segment;
      segment.kind = Segment::Kind::student;
      segment.tokens = manifest_.blocks[static_cast<std::size_t>(student.block)].tokens();
      segment.passes = passes;
      if (segment.widest_run() > manifest_.max_chunk)
        usage_error("plan " + name + ": flow block " + std::to_string(student.block) + " has a run of " +
                    std::to_string(segment.tokens) + " tokens; this bundle was exported for 1 to " +
                    std::to_string(manifest_.max_chunk));
      made.blocks.push_back({student.block, {segment}});
    }
    for (const BlockPlan& own : plan_.blocks) {
      if (manifest_.student_of(own.block) == nullptr) made.blocks.push_back(own);
    }
    return made;
  }

  // A student was trained for one guidance weight in all flow blocks, within its range.
  void check_student(const Student& student, const Request& request) const {
    const std::string of = "the student of flow block " + std::to_string(student.block),
                      instead = ", or take the plan sequential";
    if (request.attention_temperature != 1)
      usage_error("attention temperature: " + of + " was trained for 1; take the plan sequential");
    const std::vector<Guidance> none(1);
    for (const Guidance& guidance : request.guidance.empty() ? none : request.guidance) {
      const double weight = guidance.weight;
      if (!(weight >= student.least_guidance && weight <= student.largest_guidance))
        usage_error("guidance " + shortest(weight) + ": " + of + " was trained for " +
                    shortest(student.least_guidance) + " to " + shortest(student.largest_guidance) +
                    "; give a weight in this range" + instead);
      bool other = weight > 0 && (guidance.annealed || !guidance.scale || !guidance.shift);
      // The blocks above decide what the student is given.
      for (std::size_t above = static_cast<std::size_t>(student.block); above < manifest_.blocks.size(); ++above)
        other = other || weight_at(guidance, above) != weight;
      if (other)
        usage_error("guidance: " + of + " was trained for one weight in all flow blocks; leave the other options out" +
                    instead);
    }
  }

  double weight_at(const Guidance& guidance, std::size_t block) const {
    if (guidance.top_only && block + 1 != manifest_.blocks.size()) return 0;
    return guidance.weight * (guidance.schedule.empty() ? 1 : guidance.schedule[block]);
  }

  // The network of a student that the variant runs: its own in 8 bits if it has one, else that in float32.
  const Network& network_of(const Student& student) const {
    for (const QuantizedStudent& own : variant_.students) {
      if (own.block == student.block) return own.network;
    }
    return student.network;
  }

  // What the student of a flow block makes of its inputs, [B, T, D]. A token that passes the block unchanged does so
  // here, too.
  std::vector<float> by_student(const Student& student, const Block& block, const BlockInputs& inputs,
                                const BatchConditions& given) {
    const Network& network = network_of(student);
    NetworkInputs named;
    for (const TensorSpec& spec : network.inputs) {
      const void* values = inputs.noise.data();
      if (spec.role == "guidance") values = inputs.scalars.at("guidance").data();
      if (spec.role == "condition") values = given.tokens.data();
      if (spec.role == "label") values = given.labels.data();
      named[spec.name] = values;
    }
    std::vector<float> made = backend_.run_network(network, named);
    if (block.first_token > 0) {
      const std::size_t width = static_cast<std::size_t>(manifest_.model.values_of(block.patch)),
                        sequence = made.size() / static_cast<std::size_t>(manifest_.batch);
      for (std::size_t start = 0; start < made.size(); start += sequence)
        std::copy_n(inputs.noise.begin() + static_cast<std::ptrdiff_t>(start), width,
                    made.begin() + static_cast<std::ptrdiff_t>(start));
    }
    return made;
  }

  // Decodes a flow block of noise [B, T, D] by its step graph, from what a student made of it, if there is one.
  void decode_block(BlockRunner& running, const BlockInputs& inputs, const std::vector<float>& made,
                    const OnWork& on_work) {
    const Block& block = running.block();
    try {
      running.prefill(inputs);
      for (const Segment& segment : plan_.segments(block.index, block.tokens()))
        decode(running, segment, made.empty() ? nullptr : made.data(), on_work);
    } catch (...) {
      running.clear();  // nobody has seen whether its caches hold NaN, which would reach the next sequence
      throw;
    }
  }

  // Turns the noise `x` [B, T, D] of a flow block into its tokens, in raster order.
  void sample_block(const Block& block, std::vector<float>& x, const Batch& batch, const Request& request,
                    const OnWork& on_work) {
    to_block(x, manifest_.model, block);
    const BlockInputs inputs = inputs_of(block, x, batch, request.attention_temperature);
    const Segment* student = plan_.student(block.index);
    std::vector<float> made;
    if (student != nullptr) made = by_student(*manifest_.student_of(block.index), block, inputs, batch.conditions);
    BlockRunner* running = student != nullptr && student->passes == 0 ? nullptr : &runner(block);
    if (running != nullptr) {
      decode_block(*running, inputs, made, on_work);
      running->read(x);
    } else {
      x = std::move(made);
      on_work(static_cast<std::size_t>(student->tokens));
    }
    const auto strange = std::find_if(x.begin(), x.end(), [](float value) { return !std::isfinite(value); });
    if (strange != x.end()) {
      if (running != nullptr) running->clear();
      const Model& model = manifest_.model;
      const std::int64_t token =
          (strange - x.begin()) / model.values_of(block.patch) % model.tokens_of(block.patch);
      backend_error("flow block " + std::to_string(block.index) + " produced NaN or infinity at token " +
                    std::to_string(token));
    }
    from_block(x, manifest_.model, block);
  }

  static void decode(BlockRunner& running, const Segment& segment, const float* made, const OnWork& on_work) {
    if (segment.kind != Segment::Kind::steps) {
      running.iterate(segment, made);
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
    for (const Guidance& guidance : batch.guidance) {
      const auto weight = static_cast<float>(weight_at(guidance, static_cast<std::size_t>(block.index)));
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
