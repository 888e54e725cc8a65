// SPDX-License-Identifier: Apache-2.0
#include "cli/svg_chart.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::cli {

std::string EscapeXml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out;
}

std::vector<double> NiceTicks(double max, int count) {
  if (!(max > 0) || !std::isfinite(max)) max = 1;
  const double rough = max / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double nice : {1.0, 2.0, 5.0}) {
    if (nice * power >= rough) {
      step = nice * power;
      break;
    }
  }
  std::vector<double> ticks;
  for (int i = 0; ticks.empty() || ticks.back() < max; ++i) ticks.push_back(step * i);
  return ticks;
}

std::vector<double> LogTicks(double low, double high) {
  CHECK(low > 0 && high >= low);
  std::vector<double> ticks;
  for (int e = static_cast<int>(std::floor(std::log10(low)));; ++e) {
    for (const double nice : {1.0, 2.0, 5.0}) {
      const double tick = nice * std::pow(10, e);
      if (tick <= low) ticks.clear();
      ticks.push_back(tick);
      if (tick >= high && ticks.size() > 1) return ticks;
    }
  }
}

std::vector<double> DecadeTicks(double low, double high) {
  CHECK(low > 0 && high >= low);
  std::vector<double> ticks;
  for (int e = static_cast<int>(std::floor(std::log10(low)));
       ticks.size() < 2 || ticks.back() < high; ++e) {
    ticks.push_back(std::pow(10, e));
  }
  return ticks;
}

std::string ShortNumber(double value) {
  if (std::abs(value) >= 1e6) return absl::StrFormat("%.3gM", value / 1e6);
  if (std::abs(value) >= 1e4) return absl::StrFormat("%.3gk", value / 1e3);
  return absl::StrFormat("%.4g", value);
}

SvgChart::SvgChart(int width, int height, std::string_view title, std::string_view subtitle) {
  svg_ = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"Helvetica, Arial, sans-serif\">\n"
      "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
      width, height, width, height, width, height);
  Text(24, 34, "start", 20, "#111827", title);
  Text(24, 56, "start", 13, kGrey, subtitle);
}

void SvgChart::Text(double x, double y, std::string_view anchor, int size, std::string_view colour,
                    std::string_view text) {
  // The white edge keeps it readable over bars and lines.
  absl::StrAppendFormat(
      &svg_,
      "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" fill=\"%s\" "
      "stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\">%s</text>\n",
      x, y, ToAbsl(anchor), size, ToAbsl(colour), EscapeXml(text));
}

double SvgChart::Place(const Axis& axis, double value) {
  const double low = axis.ticks.front(), high = axis.ticks.back();
  const double at = axis.log ? std::log(std::max(value, low) / low) / std::log(high / low)
                             : (value - low) / (high - low);
  return std::clamp(at, 0.0, 1.0);
}

double SvgChart::X(double value) const { return left_ + Place(across_, value) * (right_ - left_); }
double SvgChart::Y(double value) const { return bottom_ - Place(up_, value) * (bottom_ - top_); }

void SvgChart::Panel(int x, int y, int width, int height, std::string_view title, Axis across,
                     Axis up) {
  left_ = x + 56;
  right_ = x + width - 48;
  top_ = y + 44;
  bottom_ = y + height - 44;
  across_ = std::move(across);
  up_ = std::move(up);
  Text(x + 8, y + 20, "start", 14, "#111827", title);
  for (const double tick : up_.ticks) {
    absl::StrAppendFormat(
        &svg_, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#e5e7eb\"/>\n",
        left_, right_, Y(tick), Y(tick));
    Text(left_ - 6, Y(tick) + 4, "end", 11, kGrey, ShortNumber(tick));
  }
  double last = -1e9;
  for (const double tick : across_.ticks) {
    if (X(tick) - last < 34) continue;
    last = X(tick);
    absl::StrAppendFormat(
        &svg_, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#9ca3af\"/>\n", last,
        last, bottom_, bottom_ + 4);
    Text(last, bottom_ + 17, "middle", 11, kGrey, ShortNumber(tick));
  }
  Text((left_ + right_) / 2, bottom_ + 34, "middle", 12, kGrey, across_.label);
  Text(left_ - 48, top_ - 8, "start", 12, kGrey, up_.label);
}

void SvgChart::RightAxis(Axis right) {
  right_axis_ = std::move(right);
  for (const double tick : right_axis_.ticks) {
    Text(right_ + 6, bottom_ - Place(right_axis_, tick) * (bottom_ - top_) + 4, "start", 11,
         kOrange, ShortNumber(tick));
  }
  Text(right_ + 44, top_ - 8, "end", 12, kOrange, right_axis_.label);
}

void SvgChart::Bar(double from, double to, double value, std::string_view colour) {
  if (!(value > 0)) return;
  absl::StrAppendFormat(
      &svg_, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"/>\n", X(from),
      Y(value), std::max(0.5, X(to) - X(from) - 0.5), bottom_ - Y(value), ToAbsl(colour));
}

void SvgChart::Path(const std::vector<std::pair<double, double>>& points, const Axis& up,
                    std::string_view colour) {
  if (points.empty()) return;
  std::string path;
  for (const auto& [x, y] : points) {
    absl::StrAppendFormat(&path, "%.1f,%.1f ", X(x), bottom_ - Place(up, y) * (bottom_ - top_));
  }
  absl::StrAppendFormat(
      &svg_, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", path,
      ToAbsl(colour));
}

void SvgChart::Line(const std::vector<std::pair<double, double>>& points, std::string_view colour) {
  Path(points, up_, colour);
}

void SvgChart::LineRight(const std::vector<std::pair<double, double>>& points,
                         std::string_view colour) {
  Path(points, right_axis_, colour);
}

void SvgChart::Dot(double x, double y, std::string_view colour, std::string_view label) {
  absl::StrAppendFormat(&svg_, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", X(x),
                        Y(y), ToAbsl(colour));
  Text(X(x), Y(y) - 9, "middle", 11, "#111827", label);
}

void SvgChart::DotBeside(double x, double y, std::string_view colour, std::string_view label,
                         bool left, int row) {
  absl::StrAppendFormat(&svg_, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", X(x),
                        Y(y), ToAbsl(colour));
  const bool end = left || X(x) > right_ - 90;
  Text(X(x) + (end ? -8 : 8), Y(y) + 4 - 13 * row, end ? "end" : "start", 12, "#111827", label);
}

void SvgChart::MarkAcross(double y, std::string_view label) {
  absl::StrAppendFormat(&svg_,
                        "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
                        "stroke-dasharray=\"4 3\"/>\n",
                        left_, right_, Y(y), Y(y), ToAbsl(kOrange));
  Text(right_ - 4, Y(y) - 5, "end", 11, kOrange, label);
}

void SvgChart::Mark(double x, std::string_view label, int row) {
  absl::StrAppendFormat(&svg_,
                        "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
                        "stroke-dasharray=\"4 3\"/>\n",
                        X(x), X(x), top_, bottom_, ToAbsl(kOrange));
  const bool end = X(x) > right_ - 90;  // Where its name has no room.
  Text(X(x) + (end ? -4 : 4), top_ + 12 + 14 * row, end ? "end" : "start", 11, "#111827", label);
}

void SvgChart::Legend(const std::vector<std::pair<std::string, std::string_view>>& entries) {
  double x = left_ + 120;
  for (const auto& [name, colour] : entries) {
    absl::StrAppendFormat(&svg_,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n",
                          x, top_ - 34, ToAbsl(colour));
    Text(x + 17, top_ - 24, "start", 12, "#111827", name);
    x += 40 + 7.0 * static_cast<double>(name.size());
  }
}

std::string SvgChart::Take() { return absl::StrCat(svg_, "</svg>\n"); }

}  // namespace penstock::cli
