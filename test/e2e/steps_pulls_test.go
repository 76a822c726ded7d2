// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/pull"
)

// pullRecord is one of many pulls.
type pullRecord struct {
	node, reference string
	// start is when it began, and took how long it took, also if it failed.
	start time.Time
	took  time.Duration
	err   error
}

// maxPause bounds the pause between two pulls of a node.
const maxPause = 2 * time.Second

// maxPulls bounds pulls on a node that end by end.
const maxPulls = 1000

// pulls are pulls that go on while something happens.
type pulls struct {
	on      []kindcluster.Node
	pause   time.Duration // the maximum between two pulls
	stop    chan struct{}
	running sync.WaitGroup

	mu      sync.Mutex // guards records
	records []pullRecord
}

// startPulls pulls one image after the other on each of the nodes, by containerd, until end or until each node has
// pulled limit of them. Next returns the reference of the n-th image for a node, which is removed from there before. A pause
// as long as each pull leaves time to the control plane on the same machine: without it, the pulls of three nodes occupy
// all processors, and the API server fails its probes. What happens must take longer than maxPause.
func startPulls(ctx context.Context, limit int, next func(ctx context.Context, n int) (string, error), on ...kindcluster.Node) *pulls {
	GinkgoHelper()
	return runPulls(ctx, &pulls{on: on, pause: maxPause}, limit, next)
}

// startPullsWithoutPause is startPulls for something that happens in a moment.
func startPullsWithoutPause(ctx context.Context, limit int, next func(ctx context.Context, n int) (string, error), on ...kindcluster.Node) *pulls {
	GinkgoHelper()
	return runPulls(ctx, &pulls{on: on}, limit, next)
}

func runPulls(ctx context.Context, p *pulls, limit int, next func(ctx context.Context, n int) (string, error)) *pulls {
	p.stop = make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	for _, node := range p.on {
		p.running.Go(func() {
			var pause time.Duration
			for n := range limit {
				select {
				case <-p.stop:
					return
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				began := time.Now()
				p.add(pullNext(ctx, node, n, next))
				pause = min(time.Since(began), p.pause)
			}
		})
	}
	DeferCleanup(func() {
		cancel()
		p.running.Wait()
	})
	return p
}

func pullNext(ctx context.Context, node kindcluster.Node, n int, next func(context.Context, int) (string, error)) pullRecord {
	record := pullRecord{node: node.Name, start: time.Now()}
	if record.reference, record.err = next(ctx, n); record.err != nil {
		return record
	}
	if record.err = pull.Remove(ctx, node, record.reference); record.err != nil {
		return record
	}
	record.start = time.Now()
	_, record.err = pull.Image(ctx, node, record.reference)
	record.took = time.Since(record.start)
	if record.err == nil {
		record.err = checkDigest(ctx, node, record.reference)
	}
	// What is not removed would fill the disk of a laptop.
	record.err = errors.Join(record.err, pull.Remove(ctx, node, record.reference))
	return record
}

// checkDigest fails if a tag of makeSample names something else on the node than what was made. containerd itself has
// verified everything behind the digest.
func checkDigest(ctx context.Context, node kindcluster.Node, tag string) error {
	made, ok := madeSamples.Load(tag)
	if !ok {
		return nil
	}
	got, err := pull.Digest(ctx, node, tag)
	if err == nil && got != made {
		err = fmt.Errorf("%s on %s is %q, and the upstream has %s", tag, node.Name, got, made)
	}
	return err
}

func (p *pulls) add(record pullRecord) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.records = append(p.records, record)
}

// since returns how many pulls that began on the node after the moment have ended.
func (p *pulls) since(moment time.Time, node string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, record := range p.records {
		if record.node == node && record.start.After(moment) {
			n++
		}
	}
	return n
}

// lastError returns the error of the last pull on the node.
func (p *pulls) lastError(node string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, record := range slices.Backward(p.records) {
		if record.node == node {
			return record.err
		}
	}
	return nil
}

// waitForMore waits until each node has begun and ended n more pulls; what was under way before has ended then, too.
func (p *pulls) waitForMore(ctx context.Context, n int) {
	GinkgoHelper()
	now := time.Now()
	for _, node := range p.on {
		Eventually(func() int { return p.since(now, node.Name) }).WithContext(ctx).WithTimeout(3*time.Minute).
			Should(BeNumerically(">=", n), func() string { return fmt.Sprintf("pulls on %s, the last one: %v", node.Name, p.lastError(node.Name)) })
	}
}

// wait waits until each node has pulled what startPulls was told at most, and returns all.
func (p *pulls) wait(ctx context.Context) []pullRecord {
	GinkgoHelper()
	ended := make(chan struct{})
	go func() {
		p.running.Wait()
		close(ended)
	}()
	Eventually(ended).WithContext(ctx).WithTimeout(5 * time.Minute).Should(BeClosed())
	return p.records
}

// end lets the pulls that are under way end, and returns all.
func (p *pulls) end() []pullRecord {
	close(p.stop)
	p.running.Wait()
	return p.records
}

// expectPulled fails for pulls that failed or took longer than the limit, and reports the durations.
func expectPulled(what string, limit time.Duration, records []pullRecord) {
	GinkgoHelper()
	AddReportEntry(what, describePulls(records, limit))
	Expect(records).NotTo(BeEmpty())
	for _, record := range records {
		Expect(record.err).NotTo(HaveOccurred(), "%s: pull of %s on %s, begun at %s", what, record.reference, record.node, record.start.Format(time.TimeOnly))
		Expect(record.took).To(BeNumerically("<=", limit), "%s: pull of %s on %s, begun at %s", what, record.reference, record.node, record.start.Format(time.TimeOnly))
	}
}

// expectNoneFailed fails for pulls that failed, however long they took, and reports the durations.
func expectNoneFailed(what string, records []pullRecord) {
	GinkgoHelper()
	expectPulled(what, time.Duration(math.MaxInt64), records)
}

// newOf returns what startPulls takes for images of the registry that nobody has seen before.
func newOf(host string) func(context.Context, int) (string, error) {
	return func(ctx context.Context, _ int) (string, error) {
		image, err := makeSample(ctx, host, small)
		return image.tag, err
	}
}

// describePulls returns the distribution of the durations, and the slow ones with the second in which they began.
func describePulls(records []pullRecord, limit time.Duration) string {
	if len(records) == 0 {
		return "no pulls"
	}
	first := slices.MinFunc(records, func(a, b pullRecord) int { return a.start.Compare(b.start) }).start
	sorted := slices.SortedFunc(slices.Values(records), func(a, b pullRecord) int { return int(a.took - b.took) })
	at := func(share int) time.Duration { return sorted[(len(sorted)-1)*share/100].took.Round(time.Millisecond) }
	var text strings.Builder
	fmt.Fprintf(&text, "%d pulls: p50 %s, p90 %s, max %s", len(records), at(50), at(90), at(100))
	if limit < math.MaxInt64 {
		fmt.Fprintf(&text, " (limit %s)", limit)
	}
	text.WriteString("; slowest:")
	for _, record := range sorted[max(0, len(sorted)-3):] {
		fmt.Fprintf(&text, " %s at +%.0f s on %s,", record.took.Round(time.Millisecond), record.start.Sub(first).Seconds(), record.node)
	}
	return strings.TrimSuffix(text.String(), ",")
}
