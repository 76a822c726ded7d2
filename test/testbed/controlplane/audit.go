// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

func (c *Cluster) auditPath() string { return filepath.Join(c.dir, "audit.log") }

// AuditLog returns what a user has asked for so far, and how it was answered. It needs Options.Audit. A request that
// was answered a moment ago may be missing.
func (c *Cluster) AuditLog(user string) ([]auditv1.Event, error) {
	content, err := os.ReadFile(c.auditPath())
	if err != nil {
		return nil, err
	}
	// The last line may be half written.
	content = content[:bytes.LastIndexByte(content, '\n')+1]
	var events []auditv1.Event
	scanner := bufio.NewScanner(bytes.NewReader(content))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var event auditv1.Event
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			return nil, fmt.Errorf("decoding the audit log of %s: %w", c.dir, err)
		}
		if event.User.Username == user {
			events = append(events, event)
		}
	}
	return events, scanner.Err()
}
