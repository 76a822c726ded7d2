// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

// Entry types of distribution's registry/proxy/scheduler.
const (
	distributionBlob = iota
	distributionManifest
)

// distributionEntry is the state that distribution's registry/proxy/scheduler has for a blob or manifest of one repository.
// The file is a JSON object with one member for each. The stock registry reads it at its start, and exits if that fails.
type distributionEntry struct {
	// Key is "<repository>@sha256:<hex>". It is also the name of the member.
	Key string
	// ExpiryData is the time at which the stock registry deletes the content.
	ExpiryData time.Time
	// EntryType is distributionBlob or distributionManifest.
	EntryType int
}

// removeDistributionState deletes the state of a stock registry: it becomes wrong when this server serves content.
func removeDistributionState(v store.Maintenance, log *slog.Logger) {
	if err := v.RemoveFile(v.Reader().DistributionState()); err != nil {
		log.Warn("Cannot delete the state of the stock registry", "error", err)
	}
}

// writeDistributionState writes the entries of all stored content. A stock registry never deletes content without an
// entry.
func writeDistributionState(to io.Writer, records []evict.Record, ttl time.Duration) error {
	w := bufio.NewWriter(to) // keeps the first error
	separator := "{"
	for _, r := range records {
		for _, l := range r.Links {
			entry := distributionEntry{Key: l.Repository + "@" + r.Digest.String(), ExpiryData: r.LastUse.Add(ttl).UTC().Truncate(time.Second)}
			switch {
			case l.Kind == evict.Layer:
				entry.EntryType = distributionBlob
			case l.Kind == evict.Revision && !slices.Contains(r.Links, evict.Link{Kind: evict.Layer, Repository: l.Repository}):
				entry.EntryType = distributionManifest
			default:
				// A tag, or a manifest that is also a blob: one entry is possible, and the one of the blob deletes the content.
				continue
			}
			value, err := json.Marshal(entry)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "%s\n%q:%s", separator, entry.Key, value)
			separator = ","
		}
	}
	if separator == "{" {
		w.WriteString(separator)
	}
	w.WriteString("\n}\n")
	return w.Flush()
}
