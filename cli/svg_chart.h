// SPDX-License-Identifier: Apache-2.0
// Charts as self-contained SVG: panels with axes, bars, lines and marks. No scripts, no fonts of
// its own, nothing from elsewhere.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace penstock::cli {

// Text in SVG and HTML.
std::string EscapeXml(std::string_view text);

// Round numbers that divide [0, max] into about `count` steps, the last at or above max.
std::vector<double> NiceTicks(double max, int count);
// Powers of ten and their double and fivefold, from at or below `low` to at or above `high`; both
// above 0.
std::vector<double> LogTicks(double low, double high);
// Powers of ten alone, likewise; two at least.
std::vector<double> DecadeTicks(double low, double high);
// "0.5", "20", "1.5k".
std::string ShortNumber(double value);

inline constexpr std::string_view kBlue = "#2f6fb3";
inline constexpr std::string_view kOrange = "#d9822b";
inline constexpr std::string_view kGrey = "#6b7280";

class SvgChart {
 public:
  SvgChart(int width, int height, std::string_view title, std::string_view subtitle);

  struct Axis {
    std::vector<double> ticks;  // First and last are its ends.
    bool log = false;
    std::string label = {};
  };
  // All that follows goes into it. Pixels of the whole picture, axes included.
  void Panel(int x, int y, int width, int height, std::string_view title, Axis across, Axis up);
  // A second axis on the right, for LineRight.
  void RightAxis(Axis right);
  void Bar(double from, double to, double value, std::string_view colour);
  void Line(const std::vector<std::pair<double, double>>& points, std::string_view colour);
  void LineRight(const std::vector<std::pair<double, double>>& points, std::string_view colour);
  void Dot(double x, double y, std::string_view colour, std::string_view label);
  // A dot whose label can keep clear of those of dots nearby: beside it, to the right unless `left`
  // or near the right end; `row` lifts it by so many lines.
  void DotBeside(double x, double y, std::string_view colour, std::string_view label, bool left,
                 int row);
  // A dashed line at `x`, named at the top; `row` keeps names of close ones apart.
  void Mark(double x, std::string_view label, int row);
  // A dashed line at `y`, named at its right end.
  void MarkAcross(double y, std::string_view label);
  void Legend(const std::vector<std::pair<std::string, std::string_view>>& entries);

  std::string Take();

 private:
  double X(double value) const;
  double Y(double value) const;
  static double Place(const Axis& axis, double value);
  void Text(double x, double y, std::string_view anchor, int size, std::string_view colour,
            std::string_view text);
  void Path(const std::vector<std::pair<double, double>>& points, const Axis& up,
            std::string_view colour);

  std::string svg_;
  double left_ = 0, top_ = 0, right_ = 0, bottom_ = 0;  // Of the panel's inside.
  Axis across_, up_, right_axis_;
};

}  // namespace penstock::cli
