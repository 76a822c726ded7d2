// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a number of bytes. Its JSON format is an integer, or a string of an integer with an optional unit, as in the
// quantities of Kubernetes: "Ki", "Mi", "Gi", "Ti", "Pi" and "Ei" are powers of 1024; "k", "M", "G", "T", "P" and "E" are
// powers of 1000. Fractions and exponents are not supported.
type Bytes int64

// units are the units in descending order of powers, binary units first.
var units = []struct {
	suffix string
	factor int64
}{
	{"Ei", 1 << 60}, {"Pi", 1 << 50}, {"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10},
	{"E", 1e18}, {"P", 1e15}, {"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3},
}

// String returns the number with the largest binary unit that is exact.
func (b Bytes) String() string {
	for _, u := range units {
		if strings.HasSuffix(u.suffix, "i") && b != 0 && int64(b)%u.factor == 0 {
			return strconv.FormatInt(int64(b)/u.factor, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalJSON returns the result of String as a JSON string.
func (b Bytes) MarshalJSON() ([]byte, error) { return json.Marshal(b.String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *Bytes) UnmarshalJSON(data []byte) error {
	text := string(data)
	if strings.HasPrefix(text, `"`) {
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
	}
	number, factor := text, int64(1)
	for _, u := range units {
		if before, found := strings.CutSuffix(text, u.suffix); found {
			number, factor = before, u.factor
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64/factor || n < math.MinInt64/factor {
		return fmt.Errorf("size %q: must be a number of bytes below 8Ei, with an optional unit, for example \"20Gi\"", text)
	}
	*b = Bytes(n * factor)
	return nil
}
