// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

const (
	// maxRest bounds the pause after a deletion. The pause is as long as the deletion.
	maxRest = 20 * time.Millisecond
	// maxFailures ends an eviction on a volume on which deletions fail.
	maxFailures = 10
)

// remover deletes objects. store.Maintenance implements it.
type remover interface {
	Remove(v evict.Victim) error
}

// evictor deletes objects in the order of the index. It is used by one goroutine.
type evictor struct {
	index    *evict.Index
	volume   remover
	requests <-chan roomRequest
	metrics  *metrics
	log      *slog.Logger
}

// evict deletes unreferenced and expired objects, and further objects until need and the requests are fulfilled. Requests
// that arrive during the eviction are fulfilled, too. See evict.Policy for a now of zero. It returns the freed bytes.
func (e *evictor) evict(ctx context.Context, now func() time.Time, need evict.Need, requests ...roomRequest) (freed int64) {
	counts := map[evict.Reason]int{}
	objects := 0
	var failed []digest.Digest
	var waiting waiters
	defer func() { waiting.end() }()
	for _, r := range requests {
		need.Bytes = max(need.Bytes, waiting.add(r, freed))
	}
	for ctx.Err() == nil && len(failed) < maxFailures {
		select {
		case r := <-e.requests:
			need.Bytes = max(need.Bytes, waiting.add(r, freed))
		default:
		}
		began := time.Now()
		v, ok := e.index.Next(now(), !need.SatisfiedBy(freed, objects))
		if !ok {
			break
		}
		if err := remove(e.index, e.volume, v); err != nil {
			e.log.Warn("Cannot delete an object", "digest", v.Digest, "error", err)
			failed = append(failed, v.Digest)
		} else {
			freed, objects = freed+v.Size, objects+1
			waiting.complete(freed)
			counts[v.Reason]++
			e.metrics.countRemoval(v)
			e.log.Debug("Deleted an object", "digest", v.Digest, "reason", v.Reason, "bytes", v.Size, "lastUse", v.LastUse)
		}
		// After the deletion, because requests for the object and for space wait for it.
		rest(ctx, min(time.Since(began), maxRest))
	}
	for _, d := range failed {
		e.index.Retry(d)
	}
	if len(counts) > 0 {
		e.log.Info("Deleted objects", "bytes", freed, "unreferenced", counts[evict.Unreferenced],
			"expired", counts[evict.Expired], "forSpace", counts[evict.LeastRecentlyUsed]+counts[evict.Sieved])
	}
	return freed
}

// remove deletes an object that the index has selected.
func remove(x *evict.Index, from remover, v evict.Victim) error {
	err := from.Remove(v)
	if err != nil {
		x.RemovalFailed(v.Digest)
		return err
	}
	x.RemovalDone(v.Digest)
	return nil
}

// rest gives processor and disk to readers: with one processor, a loop without pauses delays requests by 10 ms, because Go
// preempts a running goroutine only after that time.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
