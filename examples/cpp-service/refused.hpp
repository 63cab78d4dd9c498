// A request that is answered by a status and one sentence.
#pragma once

#include <stdexcept>
#include <string>

struct Refused : std::runtime_error {
  Refused(int http_status, const std::string& sentence) : std::runtime_error(sentence), status(http_status) {}
  int status;
};
