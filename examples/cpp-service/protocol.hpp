// What a client asks for and what it is told, in the Open Inference Protocol v2:
// https://github.com/kserve/open-inference-protocol
#pragma once

#include <optional>
#include <starflow/starflow.hpp>
#include <string>

#include "tensors.hpp"
#include "worker.hpp"

// The header that says how long the JSON of a body is, if bytes follow it.
constexpr const char* json_length_header = "Inference-Header-Content-Length";

struct Asked {
  Order order;
  Json id;                // what the client calls its request; null if it does not say
  bool as_bytes = false;  // whether the output is wanted as bytes behind the JSON
};

struct Answer {
  std::string body;
  std::size_t json_length = 0;  // 0 if the body is JSON alone
};

// Inputs and outputs of a model.
Json described(const std::string& name, const starflow::Sampler& sampler);

// The request in a body, whose JSON is as long as a header says, if it is there. Throws Refused.
Asked read_request(const starflow::Sampler& sampler, std::size_t most_images, const std::string& body,
                   const std::optional<std::string>& json_length);

// The answer when the images of a ticket are made.
Answer write_answer(const std::string& name, const starflow::Sampler& sampler, const Asked& asked,
                    const Ticket& ticket);
