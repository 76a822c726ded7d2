// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

const (
	// checkInterval is how late something can be deleted that has expired, and a larger volume be noticed.
	checkInterval = 10 * time.Second
	// saveInterval is how much of the last uses the end of the process can cost. It is small beside any useful TTL.
	saveInterval = 5 * time.Minute
	// settleTime is what a volume may need to show the space that was freed: XFS frees it in the background.
	settleTime = time.Second
	// walkRetryInterval is for volumes that cannot be read.
	walkRetryInterval = time.Minute
	// maxRest bounds the pause after a deletion, which is as long as the deletion was.
	maxRest = 20 * time.Millisecond
	// maxFailures ends an eviction on a volume that refuses all of it.
	maxFailures = 10
)

// Maintain learns what is on the volume, then deletes by the policy what has expired or what the volume has no room
// for, and records last uses. Everything else goes on meanwhile. It returns when ctx has ended and the last uses are
// recorded. It may run once at a time.
func (s *Store) Maintain(ctx context.Context) {
	if !s.learn(ctx) {
		return
	}
	s.learned.Store(true)
	defer s.learned.Store(false)
	check, save := time.NewTicker(checkInterval), time.NewTicker(saveInterval)
	defer check.Stop()
	defer save.Stop()
	var limit int64
	full := false
	var settled <-chan time.Time // nil unless the volume may not show yet what was freed
	saved := s.saveUses(nil)
	for {
		volume, err := s.volume()
		if err != nil {
			s.log.Warn("Cannot measure the volume", "error", err)
		}
		if limit != 0 && limit != volume.Limit && err == nil {
			s.log.Info("Volume has another size", "before", limit, "now", volume.Limit)
		}
		if err == nil {
			limit = volume.Limit
		}
		if settled == nil {
			if s.evict(ctx, s.policy.Excess(volume, full)) > 0 {
				settled = time.After(settleTime)
			}
			full = false
		}
		select {
		case <-check.C:
		case <-settled:
			settled = nil
		case <-s.grown:
		case <-s.full:
			full = true
		case d := <-s.demands:
			// More will be wanted soon.
			full = true
			if s.evict(ctx, 0, d) > 0 {
				settled = time.After(settleTime)
			}
		case <-save.C:
			saved = s.saveUses(saved)
		case <-ctx.Done():
			s.saveUses(saved)
			return
		}
	}
}

// learn fills the index. It returns false when ctx ends before.
func (s *Store) learn(ctx context.Context) bool {
	for {
		began := time.Now()
		err := s.walk(ctx)
		if err == nil {
			s.index.Complete()
			s.log.Info("Indexed the volume", "objects", len(s.index.Uses()), "duration", time.Since(began).String())
			return true
		}
		if ctx.Err() == nil {
			s.log.Warn("Cannot index the volume; nothing is deleted until that works", "error", err)
		}
		select {
		case <-time.After(walkRetryInterval):
		case <-ctx.Done():
			return false
		}
	}
}

// evict removes what has to go, and more until the bytes in excess are freed, and for the demands those that they want.
// Demands that come meanwhile are met, too. It returns the freed bytes.
func (s *Store) evict(ctx context.Context, excess int64, demands ...demand) (freed int64) {
	counts := map[evict.Reason]int{}
	var kept []digest.Digest
	promised := promises{}
	defer promised.keep(math.MaxInt64)
	for _, d := range demands {
		excess = max(excess, promised.add(d, freed))
	}
	for ctx.Err() == nil && len(kept) < maxFailures {
		select {
		case d := <-s.demands:
			excess = max(excess, promised.add(d, freed))
		default:
		}
		began := time.Now()
		v, ok := s.index.Next(began, s.policy, freed < excess)
		if !ok {
			break
		}
		if err := s.remove(v); err != nil {
			s.log.Warn("Cannot delete an object", "digest", v.Digest, "error", err)
			s.index.Kept(v.Digest)
			kept = append(kept, v.Digest)
		} else {
			s.index.Removed(v.Digest)
			freed += v.Size
			promised.keep(freed)
			counts[v.Reason]++
			s.metrics.evictions.WithLabelValues(string(v.Reason)).Inc()
			s.metrics.evictedBytes.WithLabelValues(string(v.Reason)).Add(float64(v.Size))
			s.log.Debug("Deleted an object", "digest", v.Digest, "reason", v.Reason, "bytes", v.Size, "lastUse", v.LastUse)
		}
		// At last, because those who want the object wait for its removal, and those who want room for its space.
		rest(ctx, min(time.Since(began), maxRest))
	}
	for _, d := range kept {
		s.index.Retry(d)
	}
	if len(counts) > 0 {
		s.log.Info("Deleted objects", "bytes", freed, "unreferenced", counts[evict.Unreferenced],
			"expired", counts[evict.Expired], "leastRecentlyUsed", counts[evict.LeastRecentlyUsed])
	}
	return freed
}

// rest leaves processor and disk to those who want to read: on one processor, a loop without a pause holds up requests by
// 10 ms, which is how late the runtime takes the turn from it.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// remove deletes content and its links. Names go before what they name, so that wherever it is interrupted nothing
// that is left promises what is gone; the next walk finds the rest.
func (s *Store) remove(v evict.Victim) error {
	links := slices.SortedFunc(slices.Values(v.Links), func(a, b evict.Link) int { return -cmp.Compare(a.Kind, b.Kind) })
	for _, l := range links {
		var err error
		if l.Kind == evict.Tag {
			err = s.removeTagOf(l, v.Digest)
		} else {
			err = s.removeUpTo(s.layout.link(l, v.Digest), s.layout.repositories())
		}
		if err != nil {
			return fmt.Errorf("removing a link of repository %s: %w", l.Repository, err)
		}
	}
	if err := s.removeUpTo(s.layout.data(v.Digest), s.layout.blobs()); err != nil {
		return fmt.Errorf("removing content: %w", err)
	}
	return nil
}

// removeTagOf removes the tag if it names the digest, and otherwise the record that it has named it.
func (s *Store) removeTagOf(l evict.Link, d digest.Digest) error {
	s.tags.Lock()
	defer s.tags.Unlock()
	if current, err := s.Tag(l.Repository, l.Tag); err == nil && current == d {
		return s.removeTag(l.Repository, l.Tag)
	}
	return s.removeUpTo(s.layout.tagIndexLink(l.Repository, l.Tag, d), s.layout.repositories())
}

// removeTag removes all of a tag. The caller holds the lock of the tags.
func (s *Store) removeTag(repository, tag string) error {
	// The name itself first: what is left without it is no tag.
	if err := s.removeIfThere(s.layout.tagLink(repository, tag)); err != nil {
		return err
	}
	if err := os.RemoveAll(s.layout.tag(repository, tag)); err != nil {
		return err
	}
	prune(filepath.Dir(s.layout.tag(repository, tag)), s.layout.repositories())
	return nil
}

// removeUpTo removes a file that may be missing, and the folders around it that get empty, up to root.
func (s *Store) removeUpTo(path, root string) error {
	if err := errors.Join(s.removeIfThere(path), removeStockLeftovers(path)); err != nil {
		return err
	}
	prune(filepath.Dir(path), root)
	return nil
}

func (s *Store) removeIfThere(path string) error {
	if err := s.removeFile(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// prune removes empty folders from dir on up to root, which stays. A failure leaves an empty folder, which hurts nobody.
func prune(dir, root string) {
	for ; len(dir) > len(root); dir = filepath.Dir(dir) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return
		}
	}
}
