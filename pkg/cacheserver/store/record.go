// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
)

const (
	// recordSuffix follows the name of a partial file in the name of its record.
	recordSuffix = ".json"
	// maxRecordSize bounds a record, in bytes. It has room for more than 1000 spans.
	maxRecordSize = 64 << 10
)

// record is the content of the file beside a partial download.
type record struct {
	Progress
	// Boot is the boot during which the record was written, see currentBoot. The bytes of a partial download are written without
	// fsync, so they can be missing after a power failure.
	Boot string `json:"boot"`
	// Synced reports that the bytes were synced before the record, so that they are there after any restart.
	Synced bool `json:"synced,omitempty"`
}

// errOtherBoot is the error about a record of another boot.
var errOtherBoot = errors.New("the machine was restarted since then, and bytes can be missing")

// currentBoot returns the ID of the current boot, which another start of the machine and another machine do not have. See man 5
// proc_sys_kernel. If the kernel has none, it returns a new ID, so that a process uses its own records only.
func currentBoot() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // not on the volume
	if boot := strings.TrimSpace(string(id)); err == nil && boot != "" {
		return boot
	}
	return rand.Text()
}

func (r record) encode() ([]byte, error) {
	content, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(content) > maxRecordSize {
		return nil, fmt.Errorf("%d spans are too many", len(r.Spans))
	}
	return content, nil
}

// readRecord reads a record of the boot, or one whose bytes were synced.
func readRecord(from layout.FS, path, boot string) (Progress, error) {
	content, err := from.ReadFile(path, maxRecordSize)
	if err != nil {
		return Progress{}, err
	}
	var r record
	if err := json.Unmarshal(content, &r); err != nil {
		return Progress{}, fmt.Errorf("decoding %s: %w", path, err)
	}
	if err := r.validate(); err != nil {
		return Progress{}, fmt.Errorf("%s: %w", path, err)
	}
	if r.Boot != boot && !r.Synced {
		return Progress{}, fmt.Errorf("%s: %w", path, errOtherBoot)
	}
	return r.Progress, nil
}
