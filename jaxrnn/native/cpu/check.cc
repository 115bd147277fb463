// Runs every build on odd shapes with different numbers of threads, and compares the results; used
// with the sanitizers. The number of threads that actually join must not change a single bit.
#include "check.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

namespace {

using namespace jaxrnn;

constexpr CellKind kCells[] = {CellKind::rnn_tanh, CellKind::rnn_relu, CellKind::lstm,
                               CellKind::gru};

struct Case {
  CellKind cell;
  Shape shape;
  bool masked, bias;
  bool narrow = false;
};

template <class T>
class Data {
 public:
  explicit Data(const Case& c) : case_(c), random_(7) {
    const auto [steps, batch, inputs, hidden, reverse, projected] = c.shape;
    const int64_t rows = gates(c.cell) * hidden, all = steps * batch, outputs = c.shape.outputs();
    x = draw(all * inputs), w_ih = draw(rows * inputs);
    // With larger weights, the network amplifies rounding errors and builds cannot agree.
    w_hh = draw(rows * outputs, 0.5 / std::sqrt(double(hidden)));
    w_hr = draw(projected * hidden, 1 / std::sqrt(double(hidden)));
    b_ih = draw(rows), b_hh = draw(rows), h0 = draw(batch * outputs), c0 = draw(batch * hidden);
    d_ys = draw(all * outputs), d_h = draw(batch * outputs), d_c = draw(batch * hidden);
    for (int64_t i = 0; i < all; ++i) mask.push_back(uint8_t(random_() % 3));
    h_initial = draw(batch * outputs), c_initial = draw(batch * hidden);
  }

  // All results of the forward and backward passes, concatenated.
  std::vector<T> run(const Build& build, int threads, int idle) const {
    const auto [steps, batch, inputs, hidden, reverse, projected] = case_.shape;
    const int64_t rows = gates(case_.cell) * hidden, all = steps * batch, states = batch * hidden;
    const int64_t outputs = case_.shape.outputs(), state = batch * outputs;
    const bool lstm = case_.cell == CellKind::lstm;
    std::vector<T> ys(size_t(all * outputs)), h(size_t(state), T(0)), c(size_t(states), T(0));
    std::vector<T> saved(size_t(all * saved_gates(case_.cell) * hidden)), cs(size_t(all * hidden));
    const uint8_t* m = case_.masked ? mask.data() : nullptr;
    Forward<T> f{case_.cell,
                 case_.shape,
                 x.data(),
                 w_ih.data(),
                 w_hh.data(),
                 case_.bias ? b_ih.data() : nullptr,
                 case_.bias ? b_hh.data() : nullptr,
                 h0.data(),
                 lstm ? c0.data() : nullptr,
                 m,
                 ys.data(),
                 h.data(),
                 lstm ? c.data() : nullptr,
                 gates(case_.cell) > 1 ? saved.data() : nullptr,
                 lstm ? cs.data() : nullptr,
                 m ? h_initial.data() : nullptr,
                 m && lstm ? c_initial.data() : nullptr,
                 projected ? w_hr.data() : nullptr};
    f.narrow = case_.narrow;
    Threads workers(threads, idle);
    jaxrnn::run(build, f, workers.pool);
    std::vector<T> dx(x.size()), dw_ih(size_t(rows * inputs)), dw_hh(size_t(rows * outputs));
    std::vector<T> dw_hr(w_hr.size()), dh = d_ys;
    std::vector<T> db_ih(static_cast<size_t>(rows)), db_hh(static_cast<size_t>(rows));
    std::vector<T> dh0(size_t(state), T(0)), dc0(size_t(states), T(0));
    std::vector<T> dh_initial(size_t(state), T(0)), dc_initial(size_t(states), T(0));
    Adjoint<T> a{case_.cell,
                 case_.shape,
                 x.data(),
                 w_ih.data(),
                 w_hh.data(),
                 h0.data(),
                 lstm ? c0.data() : nullptr,
                 m,
                 ys.data(),
                 lstm ? cs.data() : nullptr,
                 dh.data(),
                 d_h.data(),
                 lstm ? d_c.data() : nullptr,
                 saved.data(),
                 dx.data(),
                 dw_ih.data(),
                 dw_hh.data(),
                 db_ih.data(),
                 db_hh.data(),
                 dh0.data(),
                 lstm ? dc0.data() : nullptr,
                 m ? h_initial.data() : nullptr,
                 m && lstm ? c_initial.data() : nullptr,
                 m ? dh_initial.data() : nullptr,
                 m && lstm ? dc_initial.data() : nullptr,
                 dh.data(),
                 cs.data(),
                 projected ? w_hr.data() : nullptr,
                 projected ? dw_hr.data() : nullptr};
    a.narrow = case_.narrow;
    Threads others(threads, idle);
    jaxrnn::run(build, a, others.pool);
    std::vector<T> everything;
    for (const auto* part : {&ys, &h, &c, &dx, &dw_ih, &dw_hh, &db_ih, &db_hh, &dw_hr, &dh0, &dc0,
                             &dh_initial, &dc_initial})
      everything.insert(everything.end(), part->begin(), part->end());
    return everything;
  }

 private:
  std::vector<T> draw(int64_t n, double spread = 0.3) {
    std::normal_distribution<T> normal(0, T(spread));
    std::vector<T> values(static_cast<size_t>(n));
    for (T& v : values) v = normal(random_);
    return values;
  }

  Case case_;
  std::mt19937 random_;
  std::vector<T> x, w_ih, w_hh, b_ih, b_hh, w_hr, h0, c0, h_initial, c_initial, d_ys, d_h, d_c;
  std::vector<uint8_t> mask;
};

// Products in bfloat16 are compared with those in float32.
template <class T>
int check(const Case& c, double tolerance) {
  const Data<T> data(c);
  Case full = c;
  full.narrow = false;
  const std::vector<T> wanted = Data<T>(full).run(*builds().back(), 1, 0);
  int failures = 0;
  for (const Build* build : builds()) {
    if (c.narrow && !narrow_kernels(*build)) continue;
    for (int threads : {1, 2, 5}) {
      const std::vector<T> got = data.run(*build, threads, threads);
      double worst = 0;
      for (size_t i = 0; i < got.size(); ++i)
        worst = std::fmax(
            worst, std::fabs(double(got[i] - wanted[i])) / (1 + std::fabs(double(wanted[i]))));
      if (!(worst < tolerance)) {
        std::printf("%s%s, cell %d, T %ld B %ld I %ld H %ld P %ld, %d threads: %g\n", build->name,
                    c.narrow ? " in bfloat16" : "", int(c.cell), long(c.shape.steps),
                    long(c.shape.batch), long(c.shape.inputs), long(c.shape.hidden),
                    long(c.shape.projected), threads, worst);
        ++failures;
      }
      for (int idle : {0, 2})
        if (idle < threads && data.run(*build, threads, idle) != got) {
          std::printf("%s, cell %d, H %ld P %ld: %d of %d threads give other bits\n", build->name,
                      int(c.cell), long(c.shape.hidden), long(c.shape.projected), idle + 1,
                      threads);
          ++failures;
        }
    }
  }
  return failures;
}

// The products of `Scan`: with packed weights, and the sum of outer products, against sums in
// double precision.
template <class T>
int check_products(int64_t rows, int64_t depth, int64_t columns, bool transposed,
                   double tolerance) {
  std::mt19937 random(7);
  auto draw = [&](int64_t n, int64_t terms) {
    std::normal_distribution<T> normal(0, T(1 / std::sqrt(double(terms))));
    std::vector<T> values(static_cast<size_t>(n));
    for (T& v : values) v = normal(random);
    return values;
  };
  const std::vector<T> a = draw(rows * depth, 1), w = draw(depth * columns, depth);
  const std::vector<T> bias = draw(columns, 1), b = draw(rows * columns, rows);
  const int64_t inputs = transposed ? 5 : 0;
  const std::vector<T> x = draw(rows * inputs, 1), v = draw(inputs * columns, 1);
  const int64_t w_row = transposed ? 1 : columns, w_column = transposed ? depth : 1;
  // The largest error of x, an (m, n) matrix, as a sum of `count` products.
  auto worst = [](const std::vector<T>& x, int64_t n, int64_t count, auto start, auto term) {
    double error = 0;
    for (int64_t i = 0; i < int64_t(x.size()); ++i) {
      double sum = start(i);
      for (int64_t k = 0; k < count; ++k) sum += term(i / n, i % n, k);
      error = std::fmax(error, std::fabs(sum - double(x[size_t(i)])));
    }
    return error;
  };
  int failures = 0;
  for (const Build* build : builds()) {
    std::vector<T> panels(size_t(packed_size(depth, columns)));
    jaxrnn::run(*build, Packing<T>{depth, columns, transposed, w.data(), panels.data()});
    std::vector<T> x_panels(size_t(packed_size(inputs, columns)));
    jaxrnn::run(*build, Packing<T>{inputs, columns, false, v.data(), x_panels.data()});
    for (int threads : {1, 2, 5})
      for (int idle : {0, threads}) {
        std::vector<T> y(b.size()), dw(w.size()), db(static_cast<size_t>(depth));
        Threads workers(threads, idle), others(threads, idle);
        jaxrnn::run(*build,
                    Matmul<T>{rows, depth, columns, a.data(), panels.data(),
                              transposed ? bias.data() : nullptr, y.data(), inputs,
                              inputs ? x.data() : nullptr, x_panels.data()},
                    workers.pool);
        jaxrnn::run(*build,
                    OuterProducts<T>{rows, depth, columns, a.data(), b.data(), dw.data(),
                                     transposed ? db.data() : nullptr},
                    others.pool);
        auto zero = [](int64_t) { return 0.; };
        const double errors[] = {
            worst(
                y, columns, depth,
                [&](int64_t i) {
                  double start = transposed ? bias[size_t(i % columns)] : T(0);
                  for (int64_t k = 0; k < inputs; ++k)
                    start += double(x[size_t(i / columns * inputs + k)]) *
                             double(v[size_t(k * columns + i % columns)]);
                  return start;
                },
                [&](int64_t r, int64_t c, int64_t k) {
                  return double(a[size_t(r * depth + k)]) *
                         double(w[size_t(k * w_row + c * w_column)]);
                }),
            worst(dw, columns, rows, zero,
                  [&](int64_t m, int64_t c, int64_t k) {
                    return double(a[size_t(k * depth + m)]) * double(b[size_t(k * columns + c)]);
                  }),
            worst(db, depth, transposed ? rows : 0, zero,
                  [&](int64_t, int64_t m, int64_t k) { return double(a[size_t(k * depth + m)]); })};
        for (double error : errors)
          if (!(error < tolerance)) {
            std::printf("%s, products of %ld, %ld, %ld, %d threads: %g\n", build->name, long(rows),
                        long(depth), long(columns), threads, error);
            ++failures;
          }
      }
  }
  return failures;
}

}  // namespace

// `few` checks shapes that cover a single unit, cut vectors, several panels, work for several
// threads on packed weights and on weights in place, and few rows for which five threads are
// too many.
int main(int argc, char** argv) {
  const bool few = argc > 1 && std::strcmp(argv[1], "few") == 0;
  const std::vector<Shape> some = {{5, 1, 3, 1},    {7, 5, 3, 17},   {6, 3, 33, 100},
                                   {40, 5, 17, 64}, {80, 1, 20, 64}, {80, 3, 20, 64},
                                   {2, 4, 400, 257}};
  const std::vector<Shape> more = {{4, 7, 1, 63},   {0, 2, 3, 4},    {1, 1, 1, 3},
                                   {70, 2, 16, 64}, {9, 41, 20, 72}, {25, 3, 40, 300}};
  std::vector<Shape> shapes = some;
  if (!few) shapes.insert(shapes.end(), more.begin(), more.end());
  int failures =
          check_choice() + check_memory() + check_rounding() + check_patience() + check_plan(),
      count = 0;
  auto check_all = [&](CellKind cell, bool projects) {
    for (const Shape& shape : shapes)
      for (bool masked : {false, true}) {
        Case c{cell, shape, masked, (count & 1) != 0};
        c.shape.reverse = (count++ & 2) != 0;
        c.shape.projected = projects ? (2 * shape.hidden + 2) / 3 : 0;
        failures += check<float>(c, 2e-4) + check<double>(c, 1e-12);
        // Rounding can change the sign of a sum, and with it the derivative of relu by 1.
        c.narrow = !projects && cell != CellKind::rnn_relu;
        if (c.narrow) failures += check<float>(c, 0.03);
      }
  };
  for (CellKind cell : kCells) check_all(cell, false);
  check_all(CellKind::lstm, true);
  constexpr int64_t products[][3] = {
      {1, 1, 1}, {5, 17, 68}, {41, 100, 400}, {300, 100, 40}, {2, 1100, 70}};
  for (const auto& [rows, depth, columns] : products)
    for (bool transposed : {false, true}) {
      failures += check_products<float>(rows, depth, columns, transposed, 1e-4) +
                  check_products<double>(rows, depth, columns, transposed, 1e-13);
      ++count;
    }
  std::printf("%d cases, %d failures\n", count, failures);
  return failures != 0;
}
