// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// What distribution's registry/proxy/scheduler tells apart.
const (
	stockBlob = iota
	stockManifest
)

// stockEntry is what distribution's registry/proxy/scheduler records of a blob or manifest of one repository, in a JSON
// object with a member for each, which it reads at its start. It ends at once if it cannot.
type stockEntry struct {
	// Key is "<repository>@sha256:<hex>", and the name of the member as well.
	Key string
	// ExpiryData is when the stock registry deletes it.
	ExpiryData time.Time
	// EntryType is stockBlob or stockManifest.
	EntryType int
}

// writeStockState writes the entries of all that is stored. What they leave out, a stock registry never deletes.
func writeStockState(to io.Writer, uses []evict.Use, ttl time.Duration) error {
	w := bufio.NewWriter(to) // keeps the first error
	separator := "{"
	for _, u := range uses {
		for _, l := range u.Links {
			entry := stockEntry{Key: l.Repository + "@" + u.Digest.String(), ExpiryData: u.LastUse.Add(ttl).UTC().Truncate(time.Second)}
			switch {
			case l.Kind == evict.Layer:
				entry.EntryType = stockBlob
			case l.Kind == evict.Revision && !slices.Contains(u.Links, evict.Link{Kind: evict.Layer, Repository: l.Repository}):
				entry.EntryType = stockManifest
			default:
				// A tag, or a manifest that is a blob as well: there is room for one, and with a blob the content goes.
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

// saveStockState records what a stock registry needs to take over, whenever this process ends. Where nothing is ever
// deleted, a stock registry would keep no record either.
func (s *Store) saveStockState(uses []evict.Use) error {
	if s.policy.TTL <= 0 {
		return nil
	}
	return s.writeWith(s.layout.stockState(), func(w io.Writer) error { return writeStockState(w, uses, s.policy.TTL) })
}

// removeStockState removes what a stock registry has recorded, which this server makes wrong by serving what is there.
func (s *Store) removeStockState() error {
	return errors.Join(removeIfThere(s.layout.stockState()), removeStockLeftovers(s.layout.stockState()))
}

// removeStockLeftovers removes what a killed stock registry has left of writing the file: it begins with a file
// "<name>.<uuid>.tmp" beside it.
func removeStockLeftovers(path string) error {
	dir, name := filepath.Split(path)
	entries, err := readDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), name+".") && strings.HasSuffix(entry.Name(), ".tmp") {
			if err := removeIfThere(dir + entry.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}
