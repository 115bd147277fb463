// Rows that one member of a team walks.
#pragma once

#include "kernel.h"
#include "product-inl.h"

namespace {

using namespace jaxrnn;

// The rows of a group, the mask of their steps, and the member's share of the units.
struct Group {
  const int32_t* rows;
  int64_t size;
  const uint8_t* mask;
  int64_t batch;
  int part, parts;

  // Writes the positions in `rows` that have a step at t to the start of `active`, and the others
  // to its end. Returns the number of the former.
  int64_t at(int64_t t, int32_t* active) const {
    int64_t n = 0, end = size;
    for (int64_t j = 0; j < size; ++j) {
      if (!mask || mask[t * batch + rows[j]])
        active[n++] = int32_t(j);
      else
        active[--end] = int32_t(j);
    }
    return n;
  }

  // Writes to `fresh` those of the `count` positions in `active` whose step at t is a reset.
  int64_t resets(int64_t t, const int32_t* active, int64_t count, int32_t* fresh) const {
    int64_t n = 0;
    for (int64_t j = 0; mask && j < count; ++j)
      if (mask[t * batch + rows[active[j]]] == kReset) fresh[n++] = active[j];
    return n;
  }
};

// The panels of `width` columns that a member of a group owns, and their columns [begin, end).
struct Share {
  Share(const Group& group, int64_t columns, int64_t width)
      : width(width),
        p0(ceil_div(columns, width) * group.part / group.parts),
        p1(ceil_div(columns, width) * (group.part + 1) / group.parts),
        begin(min(p0 * width, columns)),
        end(min(p1 * width, columns)) {}
  int64_t width, p0, p1, begin, end;
  int64_t size() const { return end - begin; }
};

// Calls f for each panel of a share at a step, of `bytes` each. Panels that a cache holds only in
// part are read there and back, so that the last ones are found again. Where one panel exceeds the
// first-level cache and the second one holds all, nothing would be found, and one direction was
// measured to be faster.
template <class F>
JAXRNN_INLINE void for_panels(const Share& own, int64_t step, int64_t bytes, F&& f) {
  const bool back = bytes <= kFirstLevel || (own.p1 - own.p0) * bytes > kSecondLevel;
  for (int64_t p = own.p0; p < own.p1; ++p) f(back && step % 2 ? own.p0 + own.p1 - 1 - p : p);
}

// Calls f for each group that a member walks, or helps to walk. Members beyond those that walk
// together walk none.
template <class F>
void for_groups(const Plan& plan, const Schedule& schedule, const uint8_t* mask, int64_t batch,
                int member, F&& f) {
  const int parts = plan.parts();
  for (int g = member / parts; g < plan.groups; g += plan.members / parts)
    f(Group{schedule.order + schedule.begin[g], schedule.begin[g + 1] - schedule.begin[g], mask,
            batch, member % parts, parts});
}

template <class T>
void copy(T* to, const T* from, int64_t n) {
  if (n == 0) return;  // an empty array may be null
  if (from)
    __builtin_memcpy(to, from, n * sizeof(T));
  else
    __builtin_memset(to, 0, n * sizeof(T));
}

}  // namespace
