// Serves a bundle over HTTP:
//
//   starflow-service digits.bundle --port 8000
//   curl http://127.0.0.1:8000/v2/models/digits/infer -d '{"inputs":
//     [{"name": "label", "datatype": "INT64", "shape": [1], "data": [3]}]}'
//
// It speaks the Open Inference Protocol as `starflow serve` does. One thread samples and the others talk to clients.
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>

#include "protocol.hpp"
#include "refused.hpp"
#include "worker.hpp"

#include <httplib.h>

namespace {

constexpr std::size_t most_body = std::size_t{64} << 20;  // bytes
constexpr std::size_t spare_threads = 8;                  // for clients that are answered at once

struct Settings {
  std::string bundle;
  std::map<std::string, long> numbers{{"--port", 8000}, {"--max-waiting", 64}, {"--patience", 5}, {"--threads", 0}};
};

Settings parse(int count, char** values) {
  Settings settings;
  for (int index = 1; index < count; ++index) {
    const std::string argument = values[index];
    const auto option = settings.numbers.find(argument);
    if (option != settings.numbers.end() && index + 1 < count) {
      char* end = nullptr;
      option->second = std::strtol(values[++index], &end, 10);
      if (*values[index] == '\0' || *end != '\0' || option->second < 0 || option->second > 1'000'000)
        throw Refused(2, argument + " " + values[index] + ": give a whole number");
    } else if (settings.bundle.empty() && argument.rfind('-', 0) != 0) {
      settings.bundle = argument;
    } else {
      throw Refused(2, "unknown argument " + argument);
    }
  }
  if (settings.bundle.empty())
    throw Refused(2, "usage: starflow-service BUNDLE [--port N] [--max-waiting IMAGES] [--patience MS] [--threads N]");
  return settings;
}

std::string name_of(const std::string& bundle) {
  std::filesystem::path folder = std::filesystem::canonical(bundle);
  if (folder.extension() == ".bundle") folder.replace_extension();
  return folder.filename().string();
}

void answer(httplib::Response& response, int status, const Json& content) {
  response.status = status;
  response.set_content(content.dump(-1, ' ', false, Json::error_handler_t::replace), "application/json");
}

// Runs a handler; whatever goes wrong becomes a status and one sentence.
template <typename Handle>
httplib::Server::Handler guarded(const Handle& handle) {
  return [handle](const httplib::Request& request, httplib::Response& response) {
    try {
      handle(request, response);
    } catch (const Refused& refused) {
      answer(response, refused.status, {{"error", refused.what()}});
    } catch (const starflow::Error& error) {
      const bool clients = error.kind() == starflow::ErrorKind::usage;
      if (!clients) std::fprintf(stderr, "starflow-service: %s\n", error.what());
      answer(response, clients ? 400 : 500, {{"error", error.what()}});
    } catch (const std::exception& error) {
      std::fprintf(stderr, "starflow-service: internal error: %s\n", error.what());
      answer(response, 500, {{"error", "internal error; the server's log says more"}});
    }
  };
}

void infer(Worker& worker, const std::string& name, const httplib::Request& request, httplib::Response& response) {
  std::optional<std::string> json_length;
  if (request.has_header(json_length_header)) json_length = request.get_header_value(json_length_header);
  Asked asked = read_request(worker.sampler(), worker.most_waiting(), request.body, json_length);
  const std::shared_ptr<Ticket> ticket = worker.submit(asked.order);
  std::future<void> done = ticket->done.get_future();
  while (done.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) {
    if (request.is_connection_closed()) {
      ticket->abandoned = true;  // the client has gone, and frees its place
      return;
    }
  }
  done.get();
  const Answer made = write_answer(name, worker.sampler(), asked, *ticket);
  if (made.json_length > 0) response.set_header(json_length_header, std::to_string(made.json_length));
  response.set_content(made.body, made.json_length > 0 ? "application/octet-stream" : "application/json");
}

void add_routes(httplib::Server& server, Worker& worker, const std::string& name) {
  const auto known = [name](const httplib::Request& request) {
    const std::string& asked = request.path_params.at("name");
    if (asked != name) throw Refused(404, "model " + asked + ": this server has " + name);
  };
  server.Get("/v2", guarded([](const auto&, auto& response) {
               answer(response, 200, {{"name", "starflow"}, {"extensions", {"binary_tensor_data"}}});
             }));
  server.Get("/v2/health/live", guarded([](const auto&, auto& response) { answer(response, 200, {{"live", true}}); }));
  server.Get("/v2/health/ready", guarded([](const auto&, auto& response) {
               answer(response, 200, {{"ready", true}});
             }));
  for (const std::string& path : {std::string("/v2/models/:name"), std::string("/v2/models/:name/versions/1")}) {
    server.Get(path, guarded([known, name, &worker](const auto& request, auto& response) {
                 known(request);
                 answer(response, 200, described(name, worker.sampler()));
               }));
    server.Get(path + "/ready", guarded([known, name](const auto& request, auto& response) {
                 known(request);
                 answer(response, 200, {{"name", name}, {"ready", true}});
               }));
    server.Post(path + "/infer", guarded([known, name, &worker](const auto& request, auto& response) {
                  known(request);
                  infer(worker, name, request, response);
                }));
  }
  server.Get("/metrics", guarded([name, &worker](const auto&, auto& response) {
               const std::string model = "{model=" + Json(name).dump() + "} ";
               response.set_content("starflow_images_total" + model + std::to_string(worker.images()) +
                                        "\nstarflow_batches_total" + model + std::to_string(worker.batches()) +
                                        "\nstarflow_waiting_images" + model + std::to_string(worker.waiting()) + "\n",
                                    "text/plain");
             }));
}

int serve(const Settings& settings) {
  // SIGTERM and Ctrl-C are for the thread that waits for them below.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);

  const auto most_waiting = static_cast<std::size_t>(settings.numbers.at("--max-waiting"));
  const auto port = static_cast<int>(settings.numbers.at("--port"));
  starflow::Options options;
  options.threads = static_cast<int>(settings.numbers.at("--threads"));
  const std::string name = name_of(settings.bundle);
  Worker worker(starflow::Sampler::open(settings.bundle, options), most_waiting,
                std::chrono::milliseconds(settings.numbers.at("--patience")));

  httplib::Server server;
  // A client that waits holds a thread, so a full queue leaves a few for those who are to be told so.
  server.new_task_queue = [most_waiting] { return new httplib::ThreadPool(most_waiting + spare_threads); };
  server.set_payload_max_length(most_body);
  server.set_tcp_nodelay(true);
  server.set_error_handler([](const httplib::Request&, httplib::Response& response) {
    if (response.body.empty()) answer(response, response.status, {{"error", httplib::status_message(response.status)}});
  });
  add_routes(server, worker, name);
  const int bound = port == 0                                ? server.bind_to_any_port("127.0.0.1")
                    : server.bind_to_port("127.0.0.1", port) ? port
                                                             : -1;
  if (bound < 0) throw Refused(1, "127.0.0.1:" + std::to_string(port) + " cannot be had; choose another --port");
  std::printf("http://127.0.0.1:%d serves %s\n", bound, name.c_str());
  std::fflush(stdout);
  std::thread ending([&] {
    int signal = 0;
    sigwait(&ends, &signal);
    server.wait_until_ready();
    server.stop();  // takes no more requests; `listen_after_bind` returns when those that were taken are answered
  });
  server.listen_after_bind();
  // If it ended by itself; the thread waits for this signal.
  pthread_kill(ending.native_handle(), SIGTERM);  // NOLINT(bugprone-bad-signal-to-kill-thread)
  ending.join();
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return serve(parse(count, values));
  } catch (const Refused& refused) {
    std::fprintf(stderr, "starflow-service: %s\n", refused.what());
    return refused.status;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "starflow-service: %s\n", error.what());
    return 1;
  }
}
