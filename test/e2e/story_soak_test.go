// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

const (
	// soakDurationVariable is how long faults are injected, as Go's durations are written; soakSeedVariable repeats the
	// order of the faults of another run.
	soakDurationVariable = "SOAK_DURATION"
	soakSeedVariable     = "SOAK_SEED"
	soakDuration         = 20 * time.Minute
	// soakMargin is for what comes before the first fault and after the last one.
	soakMargin = 20 * time.Minute
)

// chaos is one fault of a soak.
type chaos struct {
	name string
	// cached faults leave only what is cached to be pulled: the upstream itself could not serve anything.
	cached bool
	// inject lets it happen, pulls go on, and it ends.
	inject func(ctx context.Context, s *soak)
}

// injection is what a soak reports.
type injection struct {
	what        string
	start, end  time.Time
	pulls, fail int
	slowest     time.Duration
}

// soak are continuous pulls and what was injected meanwhile.
type soak struct {
	result *shoot.Result
	warm   sample
	cached atomic.Bool
	going  *pulls
	log    []injection
}

var _ = Describe("Random faults", Ordered, Label("soak", "long"), func() {
	const upstreamHost = "docker.io"

	It("cause no corrupt content and no failed pull of content that the upstream can serve", func(ctx context.Context) {
		duration, seed, err := soakSettings()
		Expect(err).NotTo(HaveOccurred())
		fmt.Fprintf(GinkgoWriter, "soak for %s, repeat it with %s=%d\n", duration, soakSeedVariable, seed)
		s := &soak{result: startShoot(ctx, shootOf("v1alpha3", "- upstream: docker.io\n  volume:\n    size: 1Gi"))}
		s.warm = newSample(ctx, upstreamHost, small)
		for _, node := range workers() {
			for _, reference := range []string{s.warm.tag, s.warm.digest} {
				_, err := pull.Measured(ctx, tb.Upstream, node, reference)
				Expect(err).NotTo(HaveOccurred())
			}
		}
		DeferCleanup(func() { s.report(seed) })
		s.going = startPullsWithoutPause(ctx, 100*maxPulls, s.next, workers()...)
		random := rand.New(rand.NewPCG(seed, 0))
		for end := time.Now().Add(duration); time.Now().Before(end); {
			// All of them in another order each time: a short soak has each about as often.
			for _, i := range random.Perm(len(allChaos)) {
				if time.Now().After(end) {
					break
				}
				s.happen(ctx, allChaos[i])
			}
		}
		records := s.going.end()
		expectNoneFailed("pulls of the soak", records)
	}, SpecTimeout(soakLimit()))
})

// next returns what the n-th pull is of: something new, or by tag or digest what is cached.
func (s *soak) next(ctx context.Context, n int) (string, error) {
	switch {
	case n%4 == 1:
		return s.warm.digest, nil
	case n%2 == 1 || s.cached.Load():
		return s.warm.tag, nil
	}
	image, err := makeSample(ctx, "docker.io", small)
	return image.tag, err
}

// happen injects a fault under pulls, waits until all is well again, and notes it.
func (s *soak) happen(ctx context.Context, c chaos) {
	GinkgoHelper()
	By(c.name)
	if c.cached {
		s.cached.Store(true)
		s.going.waitForMore(ctx, 2) // the new ones have ended
	}
	i := injection{what: c.name, start: time.Now()}
	c.inject(ctx, s)
	i.end = time.Now()
	waitForReadyCache(ctx, "docker.io", "")
	waitForCaches(ctx, s.result)
	s.going.waitForMore(ctx, 1)
	s.cached.Store(false)
	for _, record := range s.going.all() {
		if record.start.Add(record.took).After(i.start) && record.start.Before(i.end) {
			i.pulls++
			i.slowest = max(i.slowest, record.took)
			if record.err != nil {
				i.fail++
			}
		}
	}
	s.log = append(s.log, i)
}

// all returns the pulls that have ended so far.
func (p *pulls) all() []pullRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.records)
}

// report prints what was injected and what pulls saw of it, and leaves it among the artifacts.
func (s *soak) report(seed uint64) {
	var text strings.Builder
	fmt.Fprintf(&text, "%s=%d\n%-8s  %8s  %6s  %6s  %8s  %s\n", soakSeedVariable, seed, "time", "lasted", "pulls", "failed", "slowest", "fault")
	for _, i := range s.log {
		fmt.Fprintf(&text, "%s  %7.1fs  %6d  %6d  %7.1fs  %s\n", i.start.UTC().Format(time.TimeOnly), i.end.Sub(i.start).Seconds(), i.pulls, i.fail, i.slowest.Seconds(), i.what)
	}
	if s.going != nil {
		fmt.Fprintln(&text, describePulls(s.going.all(), math.MaxInt64))
	}
	AddReportEntry("soak", text.String())
	fmt.Fprint(GinkgoWriter, text.String())
	Expect(os.MkdirAll("artifacts", 0o755)).To(Succeed())
	Expect(os.WriteFile(filepath.Join("artifacts", "soak.txt"), []byte(text.String()), 0o644)).To(Succeed())
}

// pullsMeanwhile is how many pulls each node begins and ends while a fault lasts.
const pullsMeanwhile = 3

func breaking(fault upstream.Fault) func(context.Context, *soak) {
	return func(ctx context.Context, s *soak) {
		GinkgoHelper()
		fault.Host = "docker.io"
		breakUpstream(ctx, fault)
		s.going.waitForMore(ctx, pullsMeanwhile)
		healUpstream(ctx)
	}
}

// allChaos are the faults of what is served while the upstream is away, and of what goes on while the cache is.
var allChaos = []chaos{
	{name: "the pod of the cache is killed", inject: func(ctx context.Context, s *soak) {
		pod := cachePod(ctx, "docker.io")
		Expect(kube.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		waitForReadyCache(ctx, "docker.io", string(pod.UID))
	}},
	{name: "the pod of the cache is deleted", inject: func(ctx context.Context, s *soak) { deletePod(ctx, "docker.io") }},
	{name: "the cache is scaled to 0", inject: func(ctx context.Context, s *soak) {
		DeferCleanup(func(ctx context.Context) { scale(ctx, "docker.io", 1) }, NodeTimeout(time.Minute))
		scale(ctx, "docker.io", 0)
		s.going.waitForMore(ctx, pullsMeanwhile)
		scale(ctx, "docker.io", 1)
	}},
	{name: "the node of the cache is drained", inject: func(ctx context.Context, s *soak) {
		its, _ := nodeOf(cachePod(ctx, "docker.io"))
		drain(ctx, its)
		s.going.waitForMore(ctx, pullsMeanwhile)
		uncordon(ctx, its)
	}},
	{name: "a node does not reach the pod", inject: func(ctx context.Context, s *soak) {
		pod := cachePod(ctx, "docker.io")
		_, other := nodeOf(pod)
		cutOff(ctx, other, pod.Status.PodIP, dropped)
		s.going.waitForMore(ctx, pullsMeanwhile)
		restore(ctx, other)
	}},
	{name: "the server hangs", inject: func(ctx context.Context, s *soak) {
		pod := cachePod(ctx, "docker.io")
		freezeCache(ctx, pod)
		for _, node := range workers() {
			Expect(pull.WaitForNoMirror(ctx, node, "docker.io")).To(Succeed())
		}
		s.going.waitForMore(ctx, 1)
		signalCache(ctx, pod, "SIGCONT")
	}},
	{name: "the Service is deleted", inject: func(ctx context.Context, s *soak) {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: registryv1alpha3.ObjectName("docker.io")}}
		Expect(kube.Delete(ctx, service)).To(Succeed())
		s.going.waitForMore(ctx, pullsMeanwhile)
	}},
	{name: "the upstream is not reached", cached: true, inject: func(ctx context.Context, s *soak) {
		address := upstreamAddress(ctx)
		for _, node := range nodes {
			cutOff(ctx, node, address, rejected)
		}
		s.going.waitForMore(ctx, pullsMeanwhile)
		for _, node := range nodes {
			restore(ctx, node)
		}
	}},
	{name: "the upstream hangs", cached: true, inject: breaking(upstream.Fault{Action: upstream.Hang})},
	{name: "the upstream answers 429", cached: true, inject: breaking(upstream.Fault{Action: upstream.Answer, Status: http.StatusTooManyRequests, RetryAfter: 60})},
	{name: "the upstream answers 503", cached: true, inject: breaking(upstream.Fault{Action: upstream.Answer, Status: http.StatusServiceUnavailable})},
	{name: "the upstream breaks connections off", cached: true, inject: breaking(upstream.Fault{Action: upstream.Cut})},
	{name: "the upstream sends wrong bytes", cached: true, inject: breaking(upstream.Fault{Action: upstream.Corrupt})},
}

// soakSettings reads the environment. Without a seed there each run has one of its own.
func soakSettings() (duration time.Duration, seed uint64, err error) {
	duration, seed = soakDuration, rand.Uint64()
	if value := os.Getenv(soakDurationVariable); value != "" {
		if duration, err = time.ParseDuration(value); err != nil || duration <= 0 {
			return soakDuration, 0, fmt.Errorf("%s is %q: use a duration such as 6m", soakDurationVariable, value)
		}
	}
	if value := os.Getenv(soakSeedVariable); value != "" {
		if seed, err = strconv.ParseUint(value, 10, 64); err != nil {
			return duration, 0, fmt.Errorf("%s is %q: use the number that another run has printed", soakSeedVariable, value)
		}
	}
	return duration, seed, nil
}

func soakLimit() time.Duration {
	duration, _, _ := soakSettings() // the spec itself fails for what is wrong
	return duration + soakMargin
}
