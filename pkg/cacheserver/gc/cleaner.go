// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

// cleaner deletes unusable files while a cache server indexes its volume: empty directories, corrupt tags, and partial
// downloads of a stock registry.
type cleaner struct {
	volume  store.Maintenance
	log     *slog.Logger
	enabled bool // whether anything may be deleted
	// unreadableParts counts the directories and files that could not be read.
	unreadableParts int
}

func (c *cleaner) content(digest.Digest, fs.FileInfo, time.Time) bool { return true }

func (c *cleaner) missingContent(d digest.Digest) {
	if c.enabled {
		c.warn(c.volume.PruneContent(d))
	}
}

// link omits an empty directory: a process was killed before it wrote the link. Any other link is deleted with its
// content.
func (c *cleaner) link(d digest.Digest, l evict.Link, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if c.enabled {
		c.warn(c.volume.PruneLink(d, l))
	}
	return false
}

func (c *cleaner) tag(digest.Digest, evict.Link) bool { return true }

func (c *cleaner) corruptTag(l evict.Link, _ error) {
	if c.enabled {
		c.warn(c.volume.RemoveCorruptTag(l))
	}
}

func (c *cleaner) repository(name string) {
	if c.enabled {
		c.warn(c.volume.RemoveUploads(name))
	}
}

func (c *cleaner) unreadable(err error) {
	c.unreadableParts++
	c.warn(err)
}

func (c *cleaner) warn(err error) {
	if err != nil {
		c.log.Warn("Cannot read or clean a part of the volume", "error", err)
	}
}
