// The integration of a continuous flow with fixed steps, from noise at time 0 to data at time 1.
#include <algorithm>
#include <cmath>

#include "family.hpp"
#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr int passes_per_report = 16;
constexpr std::size_t units = 1000;  // of progress from noise to data
constexpr double largest = 1e6;      // noise and data are of order 1; a state a million times larger will not return
constexpr std::size_t most_plan_bytes = std::size_t{64} << 20;

// A method whose stages look back one stage: c_i, a_(i+1)i, and b_i of its Butcher tableau.
struct Tableau {
  std::vector<double> nodes, ahead, weights;
};

Tableau tableau(const std::string& solver) {
  if (solver == "euler") return {{0}, {0}, {1}};
  if (solver == "midpoint") return {{0, 0.5}, {0.5, 0}, {0, 1}};
  if (solver == "heun") return {{0, 1}, {1, 0}, {0.5, 0.5}};
  return {{0, 0.5, 0.5, 1}, {0.5, 0.5, 1, 0}, {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6}};  // rk4
}

std::vector<Pass> pass_table(const IntegrationPlan& plan) {
  const Tableau method = tableau(plan.solver);
  std::vector<Pass> table;
  for (std::size_t step = 1; step < plan.times.size(); ++step) {
    const double start = plan.times[step - 1], h = plan.times[step] - start;
    for (std::size_t stage = 0; stage < method.nodes.size(); ++stage) {
      const bool last = stage + 1 == method.nodes.size();
      table.push_back({static_cast<float>(start + method.nodes[stage] * h), static_cast<float>(h * method.ahead[stage]),
                       static_cast<float>(h * method.weights[stage]), last ? 1.0F : 0.0F});
    }
  }
  return table;
}

IntegrationPlan default_plan() {
  constexpr int steps = 16;
  IntegrationPlan plan;
  for (int step = 0; step <= steps; ++step) plan.times.push_back(static_cast<double>(step) / steps);
  return plan;
}

// The weight of each image in a step that starts at `time`.
std::vector<float> weights_at(const std::vector<Guidance>& guidance, double time) {
  std::vector<float> weights;
  for (const Guidance& each : guidance) {
    weights.push_back(each.start <= time && time < each.end ? static_cast<float>(each.weight) : 0.0F);
  }
  return weights;
}

class ContinuousLoop : public FamilyLoop {
 public:
  ContinuousLoop(const Manifest& manifest, const Variant& variant, Backend& backend, const std::string& plan)
      : manifest_(manifest), variant_(variant), backend_(backend), plan_(default_plan()) {
    if (plan == "sequential")
      usage_error("plan sequential is for autoregressive flows; this bundle takes auto or a file");
    if (plan == "auto") {
      const StoredPlan* stored = manifest.plan_for(backend.name(), variant.name);
      if (stored != nullptr) plan_ = stored->integration;
    } else {
      try {
        plan_ = read_integration_plan(read_regular(plan, most_plan_bytes), plan);
      } catch (const Error&) {
        throw;
      } catch (const std::runtime_error& error) {
        usage_error("plan " + plan + ": " + error.what() + "; name auto or a file");
      }
    }
    if (plan_.solver == "dopri5")
      usage_error(
          "the plan is for dopri5, which this library does not have; name the file of a plan for euler, midpoint, heun "
          "or rk4");
  }

  std::size_t work() const override { return units; }
  void load() override { runner(); }

  void check(const Request& request) const override {
    if (request.attention_temperature != 1)
      usage_error("attention temperature is for autoregressive flows; leave it out");
    for (const Guidance& guidance : request.guidance) {
      if (guidance.top_only || !guidance.scale || !guidance.shift || guidance.annealed || !guidance.schedule.empty()) {
        usage_error(
            "guidance of a continuous flow takes a weight and an interval; the other options are for STARFlow and "
            "TARFlow");
      }
      if (guidance.weight > 0 && !manifest_.guided) usage_error("this bundle takes no guidance; leave it out");
    }
  }

  std::vector<float> run(const Batch& batch, const Request& request, const OnWork& on_work) override {
    ContinuousRunner& running = runner();
    const std::vector<std::int64_t> labels = batch.conditions.label_rows(manifest_.guided);
    const std::vector<float> rows = batch.conditions.token_rows(manifest_.guided);
    if (!labels.empty()) running.condition("label", labels.data());
    if (!rows.empty()) running.condition("condition", rows.data());
    const std::vector<Pass> table = pass_table(plan_);
    const std::size_t stages = table.size() / (plan_.times.size() - 1),
                      room = static_cast<std::size_t>(manifest_.max_passes);
    const auto weights_of = [&](std::size_t pass) { return weights_at(batch.guidance, plan_.times[pass / stages]); };
    std::size_t done = 0;
    running.start(batch.noise.data());
    for (std::size_t first = 0, end = 0; first < table.size(); first = end) {
      // As many passes as the table holds, with one set of weights.
      const std::vector<float> weights = weights_of(first);
      while (end < std::min(first + room, table.size()) && weights_of(end) == weights) ++end;
      running.condition("guidance", weights.data());
      running.load(table.data() + first, end - first);
      for (std::size_t next = first; next < end; next += passes_per_report) {
        const std::size_t count = std::min<std::size_t>(passes_per_report, end - next);
        running.advance(static_cast<int>(count));
        const auto reached = static_cast<std::size_t>(static_cast<double>(table[next + count - 1][0]) * units);
        if (reached > done) on_work(reached - done);
        done = std::max(done, reached);
      }
    }
    const float* found = running.read();
    std::vector<float> x(found, found + batch.noise.size());
    if (!std::all_of(x.begin(), x.end(), [](float value) { return std::abs(static_cast<double>(value)) <= largest; })) {
      backend_error(
          "the integration diverged: x became NaN, infinite or larger than 1e6; take more steps, another solver, or a "
          "smaller guidance weight");
    }
    on_work(units - done);
    if (request.on_block) request.on_block(0, batch.first, batch.count, x.data());
    return x;
  }

 private:
  ContinuousRunner& runner() {
    if (!runner_) runner_ = backend_.open_continuous(variant_.graphs[0], manifest_);
    return *runner_;
  }

  const Manifest& manifest_;
  const Variant& variant_;
  Backend& backend_;
  IntegrationPlan plan_;
  std::unique_ptr<ContinuousRunner> runner_;
};

}  // namespace

std::unique_ptr<FamilyLoop> open_continuous(const Manifest& manifest, const Variant& variant, Backend& backend,
                                            const std::string& plan) {
  return std::make_unique<ContinuousLoop>(manifest, variant, backend, plan);
}

}  // namespace starflow
