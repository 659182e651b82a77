// OK, or a refusal with its reason in words. Building one that is OK allocates nothing.
#pragma once

#include <string>
#include <utility>

namespace fastconv {

class Status {
 public:
  Status() = default;
  static Status refuse(std::string reason) {
    Status s;
    s.reason_ = std::move(reason);
    return s;
  }
  bool ok() const { return reason_.empty(); }
  explicit operator bool() const { return ok(); }
  const std::string& reason() const { return reason_; }

 private:
  std::string reason_;
};

}  // namespace fastconv
