// SPDX-License-Identifier: Apache-2.0
// A request's body for Beast: text, bounded for itself and together with all others. Inner to
// http_server*.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/optional.hpp>
#include <cstdint>
#include <string>

#include "gateway/http_server_core.h"

namespace penstock::gateway {

struct HttpBody {
  struct value_type {
    std::string text;
    std::size_t bytes_max = 0;
    HttpBudget::Charge charge;
  };

  static std::uint64_t size(const value_type& body) { return body.text.size(); }

  // Errors: http::error::body_limit, and not_enough_memory where all bodies together are too much.
  class reader {
   public:
    template <bool kRequest, typename Fields>
    reader(boost::beast::http::header<kRequest, Fields>&, value_type& body) : body_(body) {}

    void init(const boost::optional<std::uint64_t>&, boost::system::error_code& error) {
      error = {};
    }

    template <typename Buffers>
    std::size_t put(const Buffers& buffers, boost::system::error_code& error) {
      const std::size_t bytes = boost::asio::buffer_size(buffers);
      error = {};
      if (bytes > body_.bytes_max - body_.text.size()) {
        error = boost::beast::http::error::body_limit;
        return 0;
      }
      if (!body_.charge.Add(bytes)) {
        error = make_error_code(boost::system::errc::not_enough_memory);
        return 0;
      }
      for (const auto buffer : boost::beast::buffers_range_ref(buffers)) {
        body_.text.append(static_cast<const char*>(buffer.data()), buffer.size());
      }
      return bytes;
    }

    void finish(boost::system::error_code& error) { error = {}; }

   private:
    value_type& body_;
  };
};

}  // namespace penstock::gateway
