// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"testing"
)

func TestBytes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Bytes{
		`0`: 0, `1`: 1, `21474836480`: 20 << 30, `"20Gi"`: 20 << 30, `"1500Mi"`: 1500 << 20, `"7Ei"`: 7 << 60, `"5k"`: 5000, `"10G"`: 1e10, `"12"`: 12, `"-1Ki"`: -1024,
	} {
		var got Bytes
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", text, got, err, want)
		}
		encoded, err := json.Marshal(want)
		var again Bytes
		if err == nil {
			err = json.Unmarshal(encoded, &again)
		}
		if err != nil || again != want {
			t.Errorf("%d is encoded as %s and decoded as %d, %v", want, encoded, again, err)
		}
	}
	for _, text := range []string{`""`, `"Gi"`, `"1.5Gi"`, `"1e9"`, `1.5`, `1e3`, `true`, `null`, `{}`, `"8Ei"`, `"99999999999999999999"`, `"20 Gi"`, `"20gi"`, `"20GiB"`} {
		var got Bytes
		if err := json.Unmarshal([]byte(text), &got); err == nil && text != "null" {
			t.Errorf("%s: got %d, want an error", text, got)
		}
	}
	if got := Bytes(20 << 30).String(); got != "20Gi" {
		t.Errorf("String: %s", got)
	}
	if got := Bytes(1500).String(); got != "1500" {
		t.Errorf("String: %s", got)
	}
}
