// Parts of the program that `make sanitize` builds.
#pragma once

#include <vector>

#include "team.h"

// The first `idle` tasks get a thread each; later tasks find every thread busy.
struct Threads {
  Threads(int count, int idle)
      : pool{count, [this, idle](std::function<void()> task) {
               if (int(running.size()) < idle) running.emplace_back(std::move(task));
             }} {}
  ~Threads() {
    for (std::thread& t : running) t.join();
  }
  std::vector<std::thread> running;
  jaxrnn::Pool pool;
};

// Each returns the number of failures.
int check_choice();
int check_memory();
int check_patience();
int check_plan();
int check_rounding();
