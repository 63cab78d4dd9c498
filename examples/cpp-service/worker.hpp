// A bounded queue of orders, and the thread that owns the sampler and merges what waits into batches.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <starflow/starflow.hpp>
#include <thread>
#include <vector>

// Images of one request. Each depends on its own seed, condition and guidance alone, whatever shares its batch.
struct Order {
  std::vector<std::uint64_t> seeds;  // one for each image
  std::vector<double> guidance;      // one for each image
  std::vector<std::int64_t> labels;  // one for each image, or none
  std::vector<float> condition;      // condition tokens [N, m, width], or none
  float temperature = 1;             // standard deviation of the noise
  bool latents = false;              // whether the data are wanted, and not their pixels

  std::size_t count() const { return seeds.size(); }
};

// An order in the queue or under way. `done` gets a value when its images are made, or the error that ended it.
struct Ticket {
  explicit Ticket(Order what) : order(std::move(what)) {}
  const Order order;
  std::promise<void> done;
  std::atomic<bool> abandoned{false};  // nobody waits for it any more
  std::vector<float> data;             // [N, *data_shape], if latents are wanted
  std::vector<std::uint8_t> pixels;    // [N, height, width, channels], if images are wanted
  std::size_t taken = 0, made = 0;     // images that the worker has taken, and has finished
};

class Worker {
 public:
  // Loads the bundle's graphs. At most `most_waiting` images wait; one waits up to `patience` for others to fill its
  // batch. Throws starflow::Error.
  Worker(starflow::Sampler sampler, std::size_t most_waiting, std::chrono::milliseconds patience);
  ~Worker();  // finishes what waits

  // Puts an order into the queue. Throws Refused with status 503 if the queue is full.
  std::shared_ptr<Ticket> submit(Order order);

  const starflow::Sampler& sampler() const { return sampler_; }
  std::size_t most_waiting() const { return most_waiting_; }
  std::size_t waiting() const;
  std::uint64_t images() const { return images_; }    // made so far
  std::uint64_t batches() const { return batches_; }  // run so far

 private:
  struct Piece {  // one image of an order
    std::shared_ptr<Ticket> ticket;
    std::size_t index;
  };
  using Pieces = std::vector<Piece>;

  void work();
  Pieces take();
  void run(const Pieces& pieces);
  void sample(const Pieces& pieces);
  std::size_t waiting_images() const;

  starflow::Sampler sampler_;
  const std::size_t most_waiting_, largest_batch_;
  const std::chrono::milliseconds patience_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Ticket>> queue_;
  bool closed_ = false;
  std::atomic<std::uint64_t> images_{0}, batches_{0};
  std::thread thread_;
};
