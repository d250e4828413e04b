#include "parallel.h"

#include <atomic>
#include <cstdlib>
#include <exception>
#include <thread>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#else
#include <condition_variable>
#include <mutex>
#include <vector>
#endif

namespace minigpt {

static int default_threads() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  int n = wanted ? std::atoi(wanted) : static_cast<int>(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
#endif
}

static std::atomic<int> threads{default_threads()};

// A forked process has none of its parent's threads, and would wait for them forever: it computes on its one.
static std::atomic<bool> forked{false};
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] static const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

int num_threads() { return forked ? 1 : threads.load(); }
void set_num_threads(int n) { threads = n; }

static thread_local bool inside_a_piece = false;  // a parallel_for within another one runs on its thread

// What is to be done, and the first exception that a piece of it threw, which must not leave the thread it is on.
struct Job {
  void (*run)(const void*, int64_t);
  const void* context;
  std::atomic<bool> failed{false};
  std::exception_ptr error{};

  void piece(int64_t i) {
    if (failed) return;
    inside_a_piece = true;
    try {
      run(context, i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
    inside_a_piece = false;
  }
};

#if defined(_OPENMP)

static void run_on_threads(Job& job, int64_t n, int wanted) {
#pragma omp parallel for schedule(dynamic) num_threads(wanted)
  for (int64_t i = 0; i < n; i++) job.piece(i);
}

#else

// Workers sleep until a job arrives, then take its pieces one by one until none is left. One job runs at a time.
class Pool {
 public:
  void run(Job& job, int64_t n, int wanted) {
    std::lock_guard<std::mutex> one_job(job_mutex_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < wanted - 1) {
        int id = static_cast<int>(workers_.size());
        workers_.emplace_back([this, id, seen = generation_] { work(id, seen); });
      }
      job_ = &job, n_ = n, next_ = 0;
      helpers_ = wanted - 1, running_ = wanted - 1;
      generation_++;
    }
    start_.notify_all();
    take_pieces();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    start_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

 private:
  void take_pieces() {
    for (int64_t i = next_++; i < n_; i = next_++) job_->piece(i);
  }

  void work(int id, uint64_t seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, [&] { return stop_ || generation_ != seen; });
        if (stop_) return;
        seen = generation_;
        if (id >= helpers_) continue;
      }
      take_pieces();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex job_mutex_, mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int64_t n_ = 0;
  std::atomic<int64_t> next_{0};
  int helpers_ = 0, running_ = 0;
  uint64_t generation_ = 0;
  bool stop_ = false;
};

static void run_on_threads(Job& job, int64_t n, int wanted) {
  static Pool pool;
  pool.run(job, n, wanted);
}

#endif

void parallel_run(int64_t n, void (*run)(const void*, int64_t), const void* context) {
  int wanted = n < num_threads() ? static_cast<int>(n) : num_threads();
  if (wanted <= 1 || inside_a_piece) {
    for (int64_t i = 0; i < n; i++) run(context, i);
    return;
  }
  Job job{run, context};
  run_on_threads(job, n, wanted);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace minigpt
