#include "worker.hpp"

#include <algorithm>

#include "refused.hpp"

namespace {

starflow::Sampler loaded(starflow::Sampler sampler) {
  sampler.load();
  return sampler;
}

// Images of orders of one kind may share a batch.
int kind(const Order& order) { return order.labels.empty() ? (order.condition.empty() ? 0 : 1) : 2; }

template <typename Value>
void append(std::vector<Value>& to, const std::vector<Value>& from, std::size_t index, std::size_t count) {
  const std::size_t size = from.size() / count;
  to.insert(to.end(), from.begin() + static_cast<std::ptrdiff_t>(index * size),
            from.begin() + static_cast<std::ptrdiff_t>((index + 1) * size));
}

}  // namespace

Worker::Worker(starflow::Sampler sampler, std::size_t most_waiting, std::chrono::milliseconds patience)
    : sampler_(loaded(std::move(sampler))),
      most_waiting_(most_waiting),
      largest_batch_(static_cast<std::size_t>(sampler_.description().batch_sizes.front())),
      patience_(patience),
      thread_([this] { work(); }) {}

Worker::~Worker() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::size_t Worker::waiting() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return waiting_images();
}

std::size_t Worker::waiting_images() const {
  std::size_t count = 0;
  for (const auto& ticket : queue_) count += ticket->abandoned ? 0 : ticket->order.count() - ticket->taken;
  return count;
}

std::shared_ptr<Ticket> Worker::submit(Order order) {
  auto ticket = std::make_shared<Ticket>(std::move(order));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t before = waiting_images();
    if (before + ticket->order.count() > most_waiting_)
      throw Refused(503, std::to_string(before) + " images are waiting, and the queue is full; try again later");
    queue_.push_back(ticket);
  }
  changed_.notify_all();
  return ticket;
}

void Worker::work() {
  for (;;) {
    const Pieces pieces = take();
    if (pieces.empty()) return;
    run(pieces);
  }
}

// The images of the next batch, in the order they came; none if the worker is closed and nothing waits.
Worker::Pieces Worker::take() {
  Pieces pieces;
  std::unique_lock<std::mutex> lock(mutex_);
  while (pieces.empty()) {
    changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (queue_.empty()) break;
    changed_.wait_for(lock, patience_, [this] { return closed_ || waiting_images() >= largest_batch_; });
    std::deque<std::shared_ptr<Ticket>> left;
    for (const auto& ticket : queue_) {
      const bool fits = pieces.empty() || kind(pieces[0].ticket->order) == kind(ticket->order);
      while (!ticket->abandoned && fits && pieces.size() < largest_batch_ && ticket->taken < ticket->order.count())
        pieces.push_back({ticket, ticket->taken++});
      if (!ticket->abandoned && ticket->taken < ticket->order.count()) left.push_back(ticket);
    }
    queue_.swap(left);
  }
  return pieces;
}

// Samples a batch. If it fails, each of its orders runs alone, so that one harms no other.
void Worker::run(const Pieces& pieces) {
  try {
    sample(pieces);
  } catch (...) {
    std::vector<Pieces> orders;
    for (const Piece& piece : pieces) {
      if (orders.empty() || orders.back()[0].ticket != piece.ticket) orders.emplace_back();
      orders.back().push_back(piece);
    }
    if (orders.size() > 1) {
      for (const Pieces& order : orders) run(order);
    } else if (!pieces[0].ticket->abandoned.exchange(true)) {  // what is left of it in the queue is dropped
      pieces[0].ticket->done.set_exception(std::current_exception());
    }
  }
}

void Worker::sample(const Pieces& pieces) {
  std::vector<float> noise;
  starflow::Request request;
  for (const auto& [ticket, index] : pieces) {
    const Order& order = ticket->order;
    append(noise, sampler_.noise(1, order.seeds[index], order.temperature), 0, 1);
    request.guidance.emplace_back();
    request.guidance.back().weight = order.guidance[index];
    append(request.labels, order.labels, index, order.count());
    append(request.condition, order.condition, index, order.count());
  }
  request.progress = [&pieces](std::size_t, std::size_t) {  // false cancels a batch that nobody waits for
    return std::any_of(pieces.begin(), pieces.end(), [](const Piece& piece) { return !piece.ticket->abandoned; });
  };
  const std::vector<float> data = sampler_.generate(noise, request);
  std::vector<float> pictured;
  for (std::size_t row = 0; row < pieces.size(); ++row) {
    if (!pieces[row].ticket->order.latents) append(pictured, data, row, pieces.size());
  }
  starflow::Images images;
  if (!pictured.empty()) images = sampler_.to_images(pictured);
  std::size_t picture = 0;
  ++batches_;
  for (std::size_t row = 0; row < pieces.size(); ++row) {
    Ticket& ticket = *pieces[row].ticket;
    if (ticket.order.latents) append(ticket.data, data, row, pieces.size());
    if (!ticket.order.latents) append(ticket.pixels, images.pixels, picture++, images.count);
    ++images_;
    if (++ticket.made == ticket.order.count() && !ticket.abandoned) ticket.done.set_value();
  }
}
