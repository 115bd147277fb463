#include "plan.h"

#include <algorithm>
#include <vector>

#include "arguments.cuh"

namespace jaxrnn::cuda {
namespace {

int gates_of(int cell) { return cell == LSTM ? 4 : cell == GRU ? 3 : 1; }
int up(int a, int b) { return (a + b - 1) / b; }

int blocks_of(const Problem& p) {
  const int words = p.precision == BF16 ? p.hidden / 2 : p.hidden;
  return words / 16 * (p.adjoint ? gates_of(p.cell) : 1);
}

int largest_divisor(int n, int limit) {
  while (n % limit != 0) limit--;
  return limit;
}

constexpr int SOME = -1;  // of `Form::held`: as many as fit, at most half

// One CTA for each row: see alone.cuh, whose arithmetic this repeats.
constexpr int ALONE_THREADS = 256, ALONE_WEIGHTS = 192;  // in the registers of each of its threads

int alone_weights(const Problem& p) { return gates_of(p.cell) * p.hidden * p.hidden; }

std::optional<Form> fit_alone(const Problem& p, Form form) {
  const bool is_even = p.hidden == 64 || p.hidden == 128 || p.hidden == 256;
  const int of_thread = alone_weights(p) / ALONE_THREADS;
  if (!is_even || of_thread > ALONE_WEIGHTS * 4 / 3 || (form.ctas_per_sm > 1 && of_thread > 64)) return {};
  form.warps = ALONE_THREADS / 32;
  return form;
}

// Fills in how many warps split K, if none are named, and the chunk; empty if the registers do not hold it.
std::optional<Form> fit(const Problem& p, Form form) {
  if (form.is_alone()) return fit_alone(p, form);
  const int units = 8 * form.unit_tiles;
  if (p.hidden % units != 0 || p.hidden / units % form.k_split != 0) return {};
  const int all_blocks = blocks_of(p);
  if (all_blocks % form.k_split != 0) return {};
  if (form.warps == 0) {
    // Four warps have a cell for each thread of a tile; of eight, half would wait for the others.
    const int of_four = all_blocks / form.k_split / 4;
    if (form.unit_tiles * form.row_tiles == 1 && of_four <= 8) {
      form.warps = 4;
      if (const auto four = fit(p, form); four && four->chunk == of_four) return four;
    }
    form.warps = largest_divisor(all_blocks / form.k_split, 8);
  }
  if (all_blocks % (form.k_split * form.warps) != 0) return {};

  const int blocks = all_blocks / form.k_split / form.warps;
  const int tiles = (p.adjoint ? 1 : gates_of(p.cell)) * form.unit_tiles * form.k_split;
  if (form.held == SOME) {
    if (p.precision == FLOAT32 || form.k_split > 1) return {};
    for (form.held = tiles / 2; form.held > 0; form.held--)
      if (const auto fits = fit(p, form)) return fits;
    return {};
  }
  const int held = form.held == 0 ? tiles : form.held;
  const int both = tiles * form.row_tiles;
  const int sums = both >= (p.adjoint ? 4 : 3) ? 1 : both == 2 ? 2 : 4;
  // Of 255 registers: the weights, the sums, what everything else takes; the rest holds chunks. The
  // estimate may be short by some, which the compiler's report shows: see `compile_form`.
  const int cells = up(128 * form.unit_tiles * form.row_tiles, form.threads());
  const int others = 30 + 12 * form.row_tiles + cells * (gates_of(p.cell) + (p.adjoint ? 4 : 1)) +
                     (p.precision == FLOAT32 ? 8 + 4 * std::min(4, tiles) : 0) +
                     (p.ragged ? 2 * form.row_tiles + 2 * cells : 0) + (held < tiles ? 8 : 0);
  const int room = std::min(128, 255 - others - blocks * held * 4 - sums * both * 4);
  for (form.chunk = blocks; form.chunk > 0; form.chunk--) {
    const int loaded = form.chunk * form.row_tiles * 8 * (form.chunk == blocks ? 1 : 2);
    if (blocks % form.chunk == 0 && loaded <= room) return form;
  }
  return {};
}

std::optional<Plan> lay(const Problem& p, const Form& form, const Device& device) {
  if (form.k_split > 1 && !device.clusters) return {};
  // Clusters of four leave SMs over where a part of the chip has an odd number of them.
  const int sms = form.k_split > 2 ? device.sms * 10 / 11 : device.sms;
  return lay(p, form, sms * form.ctas_per_sm, device.smem / form.ctas_per_sm);
}

Form parse(int digits) {
  return {digits / 10000 % 10, digits / 1000 % 10, digits / 100 % 10, digits / 10 % 10, digits % 10, 0, digits < 100000 ? 0 : SOME};
}

}  // namespace

std::optional<Plan> lay(const Problem& p, const Form& form, int ctas, int smem) {
  if (form.is_alone()) {
    const int outside = std::max(0, alone_weights(p) - ALONE_THREADS * ALONE_WEIGHTS);
    const int bytes = 4 * (2 * (p.adjoint ? gates_of(p.cell) : 1) * p.hidden + outside);
    if (bytes > smem) return {};
    return Plan{form, p.rows, bytes, 1, 1, p.rows};
  }
  const int group_ctas = p.hidden / (8 * form.unit_tiles);
  const int most_groups = ctas / group_ctas;
  if (most_groups < 1) return {};
  const int own = (p.adjoint ? 1 : gates_of(p.cell)) * form.unit_tiles;
  const int partial = form.warps * form.row_tiles * own * form.k_split * 128;
  const int exchanged = form.k_split * form.row_tiles * own * 128;
  const int outside = form.held == 0 ? 0 : own - form.held;  // tiles in shared memory
  const int blocks = blocks_of(p) / form.k_split / form.warps;
  const int states_at = (form.k_split > 1 ? partial + 2 * exchanged : outside > 0 ? partial : 2 * partial) +
                        outside * blocks * form.threads() * 4;
  const int states = 2 * 128 * form.unit_tiles * form.row_tiles;  // of one sub-tile

  const int tile_rows = 16 * form.row_tiles;
  const int most_sub_tiles = (smem / 4 - states_at) / states;
  if (most_sub_tiles < 1) return {};
  Plan plan = {};
  plan.form = form;
  plan.sub_tiles = std::min(up(up(p.rows, tile_rows), most_groups), most_sub_tiles);
  plan.group_rows = plan.sub_tiles * tile_rows;
  const int groups = std::min(most_groups, up(p.rows, plan.group_rows));
  plan.launch_rows = groups * plan.group_rows;
  plan.ctas = groups * group_ctas;
  plan.smem = 4 * (states_at + plan.sub_tiles * states);
  return plan;
}

// The rules were read off benchmarks/results/gpu-forms-2026-11-26.jsonl (an H100). A step costs one
// exchange, which grows with the CTAs of a group, and one pass for each sub-tile. So: the fewest units a
// CTA with which the groups cover the batch in one pass, but not too many CTAs in a group where that can
// be; if no instance covers the batch, the most units.
std::optional<Plan> choose(const Problem& p, const Device& device, int wanted) {
  const auto plan_of = [&](Form form) -> std::optional<Plan> {
    const std::optional<Form> fits = fit(p, form);
    return fits ? lay(p, *fits, device) : std::nullopt;
  };
  if (wanted != 0) return plan_of(parse(wanted));

  // Nobody waits for others where one CTA holds all weights. It takes longer for a row, so all rows must
  // be at work at once, unless the weights are few.
  const int of_thread = alone_weights(p) / ALONE_THREADS;
  const bool is_large = of_thread > ALONE_WEIGHTS && (p.hidden > 128 || p.adjoint || p.precision == BF16);
  for (int ctas_per_sm : {2, 1})
    if (of_thread <= 64 || (p.rows <= device.sms && !is_large))
      if (auto alone = plan_of({0, 0, 0, 1, ctas_per_sm, 0})) return alone;

  // The adjoint of many units reads most: a cluster that splits K reads half as much, or a quarter.
  const bool reads_much = device.clusters && p.adjoint && blocks_of(p) >= 96;
  const bool is_quick = p.precision != FLOAT32;  // three products take so long that they are better spread
  if (reads_much && is_quick && blocks_of(p) >= 128 && p.rows <= 16)
    if (auto four = plan_of({2, 1, 0, 4, 1, 0})) return four;
  const int k_split = reads_much ? 2 : 1;
  std::vector<Plan> plans;
  for (int unit_tiles : {1, 2, 4})
    if (auto plan = plan_of({unit_tiles, 1, 0, k_split, 1, 0})) plans.push_back(*plan);
  if (plans.empty()) return {};

  const auto passes = [&](const Plan& plan) { return plan.sub_tiles * up(p.rows, plan.launch_rows); };
  const auto group_ctas = [&](const Plan& plan) { return p.hidden / (8 * plan.form.unit_tiles); };
  // More rows, fewer readers.
  const int least = p.rows >= 64 && p.hidden >= 256 && (p.adjoint || p.precision == BF16) ? 2 : 1;
  for (int limit : {p.adjoint && is_quick ? 48 : 64, 64, device.sms})
    for (const Plan& plan : plans)
      if (passes(plan) == 1 && group_ctas(plan) <= limit && plan.form.unit_tiles >= (limit == device.sms ? 1 : least))
        return plan;

  Plan best = plans.back();
  for (const Plan& plan : plans)
    if (passes(plan) < passes(best)) best = plan;
  // Two CTAs on an SM take turns: one computes while the other waits.
  if (!p.adjoint && p.precision == BF16 && gates_of(p.cell) > 1 && p.hidden <= 512)
    for (int unit_tiles : {2, 1})
      if (auto two = plan_of({unit_tiles, 1, 4, 1, 2, 0}); two && passes(*two) <= passes(best)) return two;
  // With some of the weights in shared memory a CTA has room for more units, and the rows are read by
  // half as many. The LSTM's largest leave no registers for rows on their way.
  const bool is_too_large = p.cell == LSTM && p.hidden > 768 && (p.adjoint || p.precision == BF16);
  if (is_quick && passes(best) > 2 && !is_too_large)
    for (int unit_tiles : {4, 2})
      if (auto some = plan_of({unit_tiles, 1, 0, 1, 1, 0, SOME}); some && 2 * passes(*some) <= passes(best)) return some;
  // Two tiles of rows share each weight that is read from a register.
  if (p.adjoint && p.precision != BF16)
    if (auto two = plan_of({best.form.unit_tiles, 2, 0, k_split, 1, 0}); two && 2 * passes(*two) <= passes(best) + 1)
      return two;
  return best;
}

bool shrink(const Problem& p, Form* form) {
  if (form->is_alone()) return false;
  const int blocks = blocks_of(p) / form->k_split / form->warps;
  for (int chunk = form->chunk - 1; chunk > 0; chunk--)
    if (blocks % chunk == 0) {
      form->chunk = chunk;
      return true;
    }
  return false;
}

std::string instance(const Problem& p, const Form& f) {
  const std::string flags = std::string(p.adjoint ? "true," : "false,") + (p.ragged ? "true>>" : "false>>");
  if (f.is_alone())
    return std::string(p.adjoint ? "adjoint" : "forward") + "_alone<AloneForm<" + std::to_string(p.cell) + "," +
           std::to_string(p.precision) + "," + std::to_string(p.hidden) + "," + flags;
  std::string name = p.adjoint ? "adjoint<Form<" : "forward<Form<";
  for (int n : {p.cell, p.precision, p.hidden, f.unit_tiles, f.row_tiles, f.warps, f.chunk, f.k_split})
    name += std::to_string(n) + ",";
  const int tiles = (p.adjoint ? 1 : gates_of(p.cell)) * f.unit_tiles * f.k_split;
  return name + std::to_string(f.held == 0 ? tiles : f.held) + "," + flags;
}

}  // namespace jaxrnn::cuda
