// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
)

// pods stands for the pods of a Shoot behind its API server.
type pods struct {
	*httptest.Server
	mu sync.Mutex // guards what follows
	// answers are by the name of the pod, and volumes too: the responses about the volume. The default is a usable volume, or
	// no pod if the pod has no answer.
	answers, volumes map[string]http.HandlerFunc
	asked            []string
}

const noPod = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"pods not found"}`

func newPods(t *testing.T) *pods {
	t.Helper()
	p := &pods{answers: map[string]http.HandlerFunc{}, volumes: map[string]http.HandlerFunc{}}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.URL.Path)
		pod, ours := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/kube-system/pods/")
		pod, path, debug := strings.Cut(pod, ":5001/proxy/")
		answer := p.answers[pod]
		switch path {
		case "upstream":
		case "volume":
			if volume := p.volumes[pod]; volume != nil {
				answer = volume
			} else if answer != nil {
				answer = volumeStates("ok", "Usable", "", "")
			}
		default:
			debug = false
		}
		p.mu.Unlock()
		if !ours || !debug || answer == nil {
			answers(http.StatusNotFound, noPod)(w, r)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *pods) set(pod string, answer http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[pod] = answer
}

func (p *pods) setVolume(pod string, answer http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.volumes[pod] = answer
}

func (p *pods) config(context.Context, string) (*rest.Config, error) {
	return &rest.Config{Host: p.URL}, nil
}

func answers(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func states(reachable, reason, message string) http.HandlerFunc {
	return answers(http.StatusOK, `{"reachable":"`+reachable+`","reason":"`+reason+`","message":"`+message+`","since":"2026-01-01T00:00:00Z","aFieldOfTomorrow":1}`)
}

// volumeStates returns a report about a volume. problems is the JSON of the elements of the list.
func volumeStates(state, reason, message, problems string) http.HandlerFunc {
	return answers(http.StatusOK, `{"version":1,"state":"`+state+`","reason":"`+reason+`","message":"`+message+`","since":"2026-01-01T00:00:00Z","problems":[`+problems+`]}`)
}

func TestUpstreamReachable(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../cacheserver/testdata/upstream.json")
	if err != nil {
		t.Fatal(err)
	}
	const (
		pod    = "registry-docker-io-0"
		served = ". The cache serves what it has"
	)
	for _, tc := range []struct {
		name   string
		config string
		answer http.HandlerFunc
		want   metav1.Condition
		again  time.Duration
	}{
		{"answers", "", states("yes", "Answers", "the upstream answers"), metav1.Condition{Status: "True", Reason: "Answers", Message: "the upstream answers"}, testIntervals.Ready},
		{"what the server writes", "", answers(200, string(document)),
			metav1.Condition{Status: "False", Reason: "RateLimited", Message: "the upstream answered 429 Too Many Requests" + served + ". Credentials (secretReferenceName, a field of v1alpha3) raise the limit of most registries"}, testIntervals.Unready},
		{"wants credentials", "", states("no", "Unauthorized", "it answered 401"),
			metav1.Condition{Status: "False", Reason: "Unauthorized", Message: "it answered 401. Give the cache credentials with secretReferenceName (a field of v1alpha3)"}, testIntervals.Unready},
		{"wrong credentials", `, "secretReferenceName": "robot"`, states("no", "Unauthorized", "it answered 401"),
			metav1.Condition{Status: "False", Reason: "Unauthorized", Message: `it answered 401. Correct the Secret of secretReferenceName "robot": make a new one and let the entry of spec.resources refer to it`}, testIntervals.Unready},
		{"no roots", "", states("no", "CertificateNotTrusted", "unknown authority"),
			metav1.Condition{Status: "False", Reason: "CertificateNotTrusted", Message: "unknown authority. If the certificate is right, give the cache its roots with caBundleSecretReferenceName (a field of v1alpha3)"}, testIntervals.Unready},
		{"wrong roots", `, "caBundleSecretReferenceName": "roots"`, states("no", "CertificateNotTrusted", "unknown authority"),
			metav1.Condition{Status: "False", Reason: "CertificateNotTrusted", Message: `unknown authority. Correct the roots in the Secret of caBundleSecretReferenceName "roots": make a new one and let the entry of spec.resources refer to it`}, testIntervals.Unready},
		{"fails", "", states("no", "Failing", "it answered 503"), metav1.Condition{Status: "False", Reason: "Failing", Message: "it answered 503" + served + " until the upstream has recovered"}, testIntervals.Unready},
		{"unreachable", "", states("no", "Unreachable", "connection refused"),
			metav1.Condition{Status: "False", Reason: "Unreachable", Message: "connection refused" + served + ". Check that the upstream is up, that pods of the Shoot can reach it, and remoteURL and proxy if the cache has them"}, testIntervals.Unready},
		{"not asked", "", states("unknown", "NotAsked", "nothing was asked yet"), metav1.Condition{Status: "Unknown", Reason: "NotAsked", Message: "nothing was asked yet"}, testIntervals.Unready},
		{"stock registry", "", answers(404, "404 page not found\n"),
			metav1.Condition{Status: "Unknown", Reason: "NotReported", Message: "the server in pod " + pod + " does not report the state of its upstream"}, testIntervals.Ready},
		{"no pod", "", answers(404, noPod),
			metav1.Condition{Status: "Unknown", Reason: "NotAnswered", Message: "pod " + pod + " did not respond: the API server of the Shoot returned 404 Not Found"}, testIntervals.Unready},
		{"pod does not listen", "", answers(503, "connection refused"),
			metav1.Condition{Status: "Unknown", Reason: "NotAnswered", Message: "pod " + pod + " did not respond: the API server of the Shoot returned 503 Service Unavailable"}, testIntervals.Unready},
		{"no JSON", "", answers(200, "<html>"),
			metav1.Condition{Status: "Unknown", Reason: "NotReported", Message: "the server in pod " + pod + " reports the state of its upstream in an unknown format"}, testIntervals.Ready},
		{"too long", "", answers(200, `{"reachable":"yes","reason":"Answers"}`+strings.Repeat(" ", contract.MaxUpstreamState)),
			metav1.Condition{Status: "Unknown", Reason: "NotReported", Message: "the server in pod " + pod + " reports the state of its upstream in an unknown format"}, testIntervals.Ready},
		{"reason that is none", "", states("no", "a reason with spaces", ""),
			metav1.Condition{Status: "Unknown", Reason: "NotReported", Message: "the server in pod " + pod + " reports the state of its upstream in an unknown format"}, testIntervals.Ready},
		{"long message", "", states("yes", "Answers", strings.Repeat("x", 10_000)),
			metav1.Condition{Status: "True", Reason: "Answers", Message: strings.Repeat("x", contract.MaxUpstreamMessage-len("…")) + "…"}, testIntervals.Ready},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s, p := newTestShoot(t), newPods(t)
			s.reconcile(t, s.ask(t, "docker.io"))
			s.setReady(t, "docker.io", 1)
			p.set(pod, tc.answer)
			r := &readiness{seed: s.seed, forShoot: s.client, proxied: p.config, intervals: testIntervals}
			if tc.config != "" {
				// Only the spec changes: the actuator would look for the Secret.
				s.askRaw(t, []byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[{"upstream":"docker.io"`+tc.config+`}]}`))
			}
			result, err := r.Reconcile(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			if result.RequeueAfter != tc.again {
				t.Errorf("looks again after %s, want %s", result.RequeueAfter, tc.again)
			}
			conditions := s.status(t).Caches[0].Conditions
			if !meta.IsStatusConditionTrue(conditions, v1alpha3.ConditionReady) {
				t.Errorf("the cache is not ready any more: %v", conditions)
			}
			tc.want.Type = "UpstreamReachable"
			got := meta.FindStatusCondition(conditions, v1alpha3.ConditionUpstreamReachable)
			if diff := cmp.Diff(&tc.want, got, cmpopts.IgnoreFields(metav1.Condition{}, "LastTransitionTime")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			prefix := "GET /api/v1/namespaces/kube-system/pods/" + pod + ":5001/proxy/"
			slices.Sort(p.asked)
			if want := []string{prefix + "upstream", prefix + "volume"}; !cmp.Equal(want, p.asked) {
				t.Errorf("asked for %v, want %v", p.asked, want)
			}

			// The same again is no change, whatever the words are.
			before := s.writes
			if _, err := r.Reconcile(t.Context(), request); err != nil || s.writes != before {
				t.Errorf("%d writes, error %v", s.writes-before, err)
			}
		})
	}
}

func TestVolumeUsable(t *testing.T) {
	t.Parallel()
	document, err := json.Marshal(contract.NewVolumeState(contract.ReasonIOError, "read a: input/output error", time.Unix(1, 0), nil))
	if err != nil {
		t.Fatal(err)
	}
	const (
		pod         = "registry-docker-io-0"
		passThrough = ". The cache serves its readable content, and passes other content through. "
		storage     = "Check the storage of the PersistentVolume"
		access      = ". The cache serves all other content. Delete them, or give the user of the pod access"
		file        = `{"path":"docker/a","message":"permission denied"}`
	)
	for _, tc := range []struct {
		name   string
		ready  int32
		answer http.HandlerFunc
		want   metav1.Condition
		again  time.Duration
	}{
		{"usable", 1, volumeStates("ok", "Usable", "", ""), metav1.Condition{Status: "True", Reason: "Usable", Message: "the cache can read and write"}, testIntervals.Ready},
		{"response of the server", 1, answers(200, string(document)), metav1.Condition{Status: "False", Reason: "IOError", Message: "read a: input/output error" + passThrough + storage}, testIntervals.Unready},
		{"full", 1, volumeStates("full", "VolumeFull", "no space left", file), metav1.Condition{Status: "False", Reason: "VolumeFull", Message: "no space left" + passThrough + "Increase volume.size, or decrease garbageCollection.ttl"}, testIntervals.Unready},
		{"read-only", 1, volumeStates("read-only", "NotWritable", "read-only file system", ""),
			metav1.Condition{Status: "False", Reason: "NotWritable", Message: "read-only file system" + passThrough + "Check whether the file system is mounted read-only, and the owner and the permissions of its root directory"}, testIntervals.Unready},
		{"hung, so the pod is not ready", 0, volumeStates("hung", "NoResponse", "no result", ""),
			metav1.Condition{Status: "False", Reason: "NoResponse", Message: "no result. Nodes pull from the upstream until the volume responds. " + storage}, testIntervals.Unready},
		{"unusable file", 1, volumeStates("ok", "Usable", "", file),
			metav1.Condition{Status: "False", Reason: "UnusableFiles", Message: "the cache cannot use these files and directories: docker/a: permission denied" + access}, testIntervals.Unready},
		{"many unusable files", 1, volumeStates("ok", "Usable", "", strings.Repeat(file+",", 4)+file),
			metav1.Condition{Status: "False", Reason: "UnusableFiles", Message: "the cache cannot use these files and directories: " + strings.Repeat("docker/a: permission denied; ", 3) +
				"and 2 more, see /volume on port 5001 of the pod" + access}, testIntervals.Unready},
		{"stock registry", 1, answers(404, "404 page not found\n"), metav1.Condition{Status: "Unknown", Reason: "NotReported", Message: "the server in pod " + pod + " does not report the state of its volume"}, testIntervals.Ready},
		{"no pod", 0, answers(404, noPod), metav1.Condition{Status: "Unknown", Reason: "NotAnswered", Message: "pod " + pod + " did not respond: the API server of the Shoot returned 404 Not Found"}, testIntervals.Unready},
		{"unknown reason", 1, volumeStates("ok", "Sideways", "", ""), metav1.Condition{Status: "Unknown", Reason: "NotReported", Message: "the server in pod " + pod + " reports the state of its volume in an unknown format"}, testIntervals.Ready},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s, p := newTestShoot(t), newPods(t)
			s.reconcile(t, s.ask(t, "docker.io"))
			s.setReady(t, "docker.io", tc.ready)
			p.set(pod, states("yes", "Answers", ""))
			p.setVolume(pod, tc.answer)
			r := &readiness{seed: s.seed, forShoot: s.client, proxied: p.config, intervals: testIntervals}
			result, err := r.Reconcile(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			if result.RequeueAfter != tc.again {
				t.Errorf("looks again after %s, want %s", result.RequeueAfter, tc.again)
			}
			tc.want.Type = "VolumeUsable"
			got := meta.FindStatusCondition(s.status(t).Caches[0].Conditions, v1alpha3.ConditionVolumeUsable)
			if diff := cmp.Diff(&tc.want, got, cmpopts.IgnoreFields(metav1.Condition{}, "LastTransitionTime")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// What the owner has to do is up to date, also if the reason is the same.
func TestAdviceFollows(t *testing.T) {
	t.Parallel()
	s, p := newTestShoot(t), newPods(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.setReady(t, "docker.io", 1)
	p.set("registry-docker-io-0", states("no", "Unauthorized", "it answered 401"))
	r := &readiness{seed: s.seed, forShoot: s.client, proxied: p.config, intervals: testIntervals}
	message := func(conditionType string) string {
		t.Helper()
		if _, err := r.Reconcile(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		return meta.FindStatusCondition(s.status(t).Caches[0].Conditions, conditionType).Message
	}
	for _, file := range []string{"a", "b"} {
		p.setVolume("registry-docker-io-0", volumeStates("ok", "Usable", "", `{"path":"`+file+`","message":"permission denied"}`))
		if got := message("VolumeUsable"); !strings.Contains(got, ": "+file+": permission denied") {
			t.Errorf("file %s: %s", file, got)
		}
	}
	if got := message("UpstreamReachable"); !strings.Contains(got, "Give the cache credentials") {
		t.Errorf("without credentials: %s", got)
	}
	s.askRaw(t, []byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[{"upstream":"docker.io","secretReferenceName":"robot"}]}`))
	if got := message("UpstreamReachable"); !strings.Contains(got, `Correct the Secret of secretReferenceName "robot"`) {
		t.Errorf("with wrong credentials: %s", got)
	}
}

// A message that differs with each request, such as one with a port, must not lead from one look to the next.
func TestUpstreamMessagesDoNotCauseWrites(t *testing.T) {
	t.Parallel()
	s, p := newTestShoot(t), newPods(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.setReady(t, "docker.io", 1)
	r := &readiness{seed: s.seed, forShoot: s.client, proxied: p.config, intervals: testIntervals}
	for i, message := range []string{"read from port 1", "read from port 2"} {
		p.set("registry-docker-io-0", states("no", "Unreachable", message))
		before := s.writes
		if _, err := r.Reconcile(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		if wrote := s.writes > before; wrote != (i == 0) {
			t.Errorf("%s: written: %t", message, wrote)
		}
	}
}

func TestUpstreamOfAHighlyAvailableCache(t *testing.T) {
	t.Parallel()
	s, p := newTestShoot(t), newPods(t)
	s.reconcile(t, s.askRaw(t, []byte(highlyAvailableConfig)))
	s.setReady(t, "docker.io", 2)
	r := &readiness{seed: s.seed, forShoot: s.client, proxied: p.config, intervals: testIntervals}
	yes, no := states("yes", "Answers", ""), states("no", "Failing", "")
	gone := answers(http.StatusNotFound, noPod)
	for _, tc := range []struct {
		name          string
		first, second http.HandlerFunc
		want          metav1.ConditionStatus
	}{
		{"both", yes, yes, "True"}, {"the first does not", no, yes, "False"}, {"the second does not", yes, no, "False"},
		{"one is away", gone, yes, "True"}, {"the other one is away", yes, gone, "True"}, {"one is away, the other does not", gone, no, "False"}, {"both are away", gone, gone, "Unknown"},
	} {
		p.set("registry-docker-io-0", tc.first)
		p.set("registry-docker-io-1", tc.second)
		if _, err := r.Reconcile(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		got := meta.FindStatusCondition(s.status(t).Caches[0].Conditions, v1alpha3.ConditionUpstreamReachable)
		if got == nil || got.Status != tc.want {
			t.Errorf("%s: got %+v, want %s", tc.name, got, tc.want)
		}
	}
}

// One upstream that cannot be looked at has no influence on the others, nor on what else is known.
func TestUpstreamsDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	s, p := newTestShoot(t), newPods(t)
	s.reconcile(t, s.ask(t, "docker.io", "ghcr.io", "quay.io"))
	s.setReady(t, "docker.io", 1)
	s.setReady(t, "ghcr.io", 1)
	ended := make(chan struct{})
	p.set("registry-docker-io-0", func(http.ResponseWriter, *http.Request) { <-ended })
	defer close(ended)
	p.set("registry-ghcr-io-0", states("yes", "Answers", ""))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	config, err := p.config(ctx, "")
	caches := s.status(t).Caches
	for i, ready := range []metav1.ConditionStatus{"True", "True", "False"} {
		meta.SetStatusCondition(&caches[i].Conditions, metav1.Condition{Type: "Ready", Status: ready, Reason: "x"})
	}
	changed, settled := updateReports(ctx, config, err, caches, configuredCaches(logr.Discard(), s.extension(t)))
	if !changed || settled {
		t.Errorf("changed: %t, settled: %t", changed, settled)
	}
	for i, want := range []string{"NotAnswered", "Answers", "CacheNotReady"} {
		if got := meta.FindStatusCondition(caches[i].Conditions, v1alpha3.ConditionUpstreamReachable); got == nil || got.Reason != want {
			t.Errorf("%s: got %+v, want %s", caches[i].Upstream, got, want)
		}
	}
}

func TestUpstreamsOfAShootThatIsNotReached(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.setReady(t, "docker.io", 1)
	failing := func(context.Context, string) (*rest.Config, error) { return nil, errors.New("no kubeconfig") }
	result, err := (&readiness{seed: s.seed, forShoot: s.client, proxied: failing, intervals: testIntervals}).Reconcile(t.Context(), request)
	if err != nil || result.RequeueAfter != testIntervals.Unready {
		t.Errorf("got %v, %v", result, err)
	}
	conditions := s.status(t).Caches[0].Conditions
	got := meta.FindStatusCondition(conditions, v1alpha3.ConditionUpstreamReachable)
	if got == nil || got.Reason != "NotAnswered" || got.Message != "the Shoot was not reached: no kubeconfig" || !meta.IsStatusConditionTrue(conditions, "Ready") {
		t.Errorf("got %+v", conditions)
	}
}

// A pod could otherwise have the credentials of the Shoot sent to wherever it likes.
func TestPodsDoNotRedirect(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("followed to %s with %q", r.URL, r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	p := newPods(t)
	p.set("p", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) })
	proxy, err := newPodProxy(&rest.Config{Host: p.URL, BearerToken: "secret"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := proxy.get(t.Context(), "p", podReports[0]); got.status != http.StatusFound || got.err != nil {
		t.Errorf("got %d, %v", got.status, got.err)
	}
}
