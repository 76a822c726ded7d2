// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
)

// number formats v with three significant digits.
func number(v float64) string {
	switch {
	case v != 0 && math.Abs(v) < 1e-300:
		return "0"
	case math.Abs(v) >= 1<<20:
		return thousands(v/(1<<20)) + " Mi"
	case math.Abs(v) >= 1000:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// seconds formats a duration in seconds with three significant digits, or as minutes and seconds. NaN stays NaN.
func seconds(v float64) string {
	switch {
	case math.IsNaN(v):
		return "NaN"
	case v == 0:
		return "0 s"
	case v < .0009995:
		return fmt.Sprintf("%.3g µs", v*1e6)
	case v < .9995:
		return fmt.Sprintf("%.3g ms", v*1e3)
	case v < 99.95:
		return fmt.Sprintf("%.3g s", v)
	}
	whole := int(math.Round(v))
	if whole%60 == 0 {
		return fmt.Sprintf("%d m", whole/60)
	}
	return fmt.Sprintf("%d m %d s", whole/60, whole%60)
}

// times formats a ratio.
func times(v float64) string { return fmt.Sprintf("%s ×", thousands(v)) }

// mebibytes formats a number of bytes in MiB.
func mebibytes(v float64) string { return thousands(v/(1<<20)) + " MiB" }

// percent formats a share in 0 – 1.
func percent(v float64) string { return fmt.Sprintf("%.3g %%", v*100) }

// in returns a format for numbers with a unit.
func in(unit string) func(float64) string {
	return func(v float64) string { return thousands(v) + " " + unit }
}

// thousands formats v with three significant digits and a space between thousands.
func thousands(v float64) string {
	if v < 999.5 {
		return fmt.Sprintf("%.3g", v)
	}
	precision := math.Pow(10, math.Floor(math.Log10(v))-2)
	s := fmt.Sprintf("%.0f", math.Round(v/precision)*precision)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}
