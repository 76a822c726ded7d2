// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

const (
	// reportsTimeout limits the requests to all pods of a Shoot, and leaves time to write the status. A server responds within
	// ten seconds even if it requests the upstream first.
	reportsTimeout = 12 * time.Second
	// maxLooks is the number of reports that are requested concurrently.
	maxLooks = 8
	// shownProblems limits the files that a condition names.
	shownProblems = 3
)

// Reasons of conditions that result from the reports of pods, but are not a part of a report.
const (
	// reasonCacheNotReady (Unknown): no pod can report.
	reasonCacheNotReady = "CacheNotReady"
	// reasonNotAnswered (Unknown): the pods do not respond.
	reasonNotAnswered = "NotAnswered"
	// reasonNotReported (Unknown): the server in the pods does not report this, or not in a known format.
	reasonNotReported = "NotReported"
	// reasonUnusableFiles (False): the volume works, but some of its files do not.
	reasonUnusableFiles = "UnusableFiles"
)

// shootConfig returns the configuration for clients of the API server of a Shoot, by the namespace of the Shoot in the Seed.
type shootConfig func(ctx context.Context, namespace string) (*rest.Config, error)

// podReport is a state that the server in the pods of a cache reports, and the condition that results from it.
type podReport struct {
	conditionType string
	// path is on the debug port of the pods.
	path string
	// subject describes the state in messages.
	subject string
	// maxSize limits the response, in bytes.
	maxSize int64
	// ofUnready is set if the report of a pod that is not ready is useful.
	ofUnready bool
	// decode returns the status, reason and message of the condition. Its error means that the format is unknown.
	decode func(cache v1alpha3.RegistryCache, body []byte) (metav1.Condition, error)
}

var podReports = []podReport{
	{
		conditionType: v1alpha3.ConditionUpstreamReachable, path: contract.UpstreamPath, subject: "its upstream",
		maxSize: contract.MaxUpstreamState, decode: upstreamCondition,
	},
	{
		// A pod is not ready if its volume does not respond.
		conditionType: v1alpha3.ConditionVolumeUsable, path: contract.VolumePath, subject: "its volume",
		maxSize: contract.MaxVolumeState, ofUnready: true, decode: volumeCondition,
	},
}

// look is the request for one report of one cache.
type look struct {
	report podReport
	cache  v1alpha3.RegistryCache
	// index is that of the cache in the status.
	index int
	ready bool
	// condition is the result.
	condition metav1.Condition
}

// updateReports sets the conditions that result from the reports of pods, for all caches that are configured. changed is
// true if a condition has another status or reason than before, settled if no condition is likely to change soon. A failed
// request is a part of the condition, so that it affects no other condition.
func updateReports(ctx context.Context, config *rest.Config, configErr error, caches []v1alpha3.RegistryCacheStatus, configured map[string]v1alpha3.RegistryCache) (changed, settled bool) {
	ctx, cancel := context.WithTimeout(ctx, reportsTimeout)
	defer cancel()
	proxy, err := newPodProxy(config, configErr)
	looks := planLooks(caches, configured)
	var running errgroup.Group
	running.SetLimit(maxLooks)
	for _, l := range looks {
		running.Go(func() error {
			l.condition = l.result(ctx, proxy, err)
			return nil
		})
	}
	_ = running.Wait() // no look returns an error
	settled = true
	for _, l := range looks {
		changed = setReport(&caches[l.index].Conditions, l.condition, l.advice()) || changed
		settled = settled && (l.condition.Status == metav1.ConditionTrue || l.condition.Reason == reasonNotReported)
	}
	return changed, settled
}

// planLooks returns the requests, those of ready caches first: the others may take all the time.
func planLooks(caches []v1alpha3.RegistryCacheStatus, configured map[string]v1alpha3.RegistryCache) []*look {
	var ofReady, others []*look
	for i := range caches {
		cache, ok := configured[caches[i].ObjectName()]
		if !ok {
			continue
		}
		ready := meta.IsStatusConditionTrue(caches[i].Conditions, v1alpha3.ConditionReady)
		for _, report := range podReports {
			l := &look{report: report, cache: cache, index: i, ready: ready}
			if ready {
				ofReady = append(ofReady, l)
			} else {
				others = append(others, l)
			}
		}
	}
	return append(ofReady, others...)
}

// setReport sets a condition and returns whether its status, its reason or the end of its message, advice, has changed.
// Otherwise the previous condition remains: messages of the network differ from one request to the next, and each change of
// the status leads to another look.
func setReport(conditions *[]metav1.Condition, condition metav1.Condition, advice string) bool {
	before := meta.FindStatusCondition(*conditions, condition.Type)
	if before != nil && before.Status == condition.Status && before.Reason == condition.Reason && strings.HasSuffix(before.Message, advice) {
		return false
	}
	return meta.SetStatusCondition(conditions, condition)
}

// result requests the report from all pods of the cache. The worst condition counts, and a pod that does not respond counts
// only if no pod responds. proxyErr is the reason for which there is no proxy.
func (l *look) result(ctx context.Context, proxy *podProxy, proxyErr error) metav1.Condition {
	switch {
	case !l.ready && !l.report.ofUnready:
		return l.unknown(reasonCacheNotReady, "no pod of the cache is ready")
	case proxyErr != nil:
		return l.unknown(reasonNotAnswered, proxyErr.Error())
	}
	var found metav1.Condition
	rank := []metav1.ConditionStatus{"", metav1.ConditionUnknown, metav1.ConditionTrue, metav1.ConditionFalse}
	for ordinal := range desired.Replicas(l.cache) {
		pod := fmt.Sprintf("%s-%d", l.cache.ObjectName(), ordinal)
		condition := l.ofAnswer(pod, proxy.get(ctx, pod, l.report))
		if slices.Index(rank, condition.Status) > slices.Index(rank, found.Status) {
			found = condition
		}
	}
	return found
}

// advice returns the end of the message of the condition that describes what the owner has to do. It is the same for each
// request in the same situation.
func (l *look) advice() string {
	switch c := l.condition; {
	case c.Reason == reasonUnusableFiles:
		return c.Message
	case c.Type == v1alpha3.ConditionUpstreamReachable && c.Status == metav1.ConditionFalse:
		return upstreamRemedy(l.cache, contract.Reason(c.Reason))
	default:
		return ""
	}
}

func (l *look) unknown(reason, message string) metav1.Condition {
	return metav1.Condition{Type: l.report.conditionType, Status: metav1.ConditionUnknown, Reason: reason, Message: message}
}

// podAnswer is the response of the Shoot's API server to a request for a pod.
type podAnswer struct {
	status int
	body   []byte
	err    error
}

// ofAnswer returns the condition that results from the response for one pod.
func (l *look) ofAnswer(pod string, answer podAnswer) metav1.Condition {
	switch {
	case answer.err != nil:
		return l.unknown(reasonNotAnswered, fmt.Sprintf("pod %s did not respond: %v", pod, answer.err))
	case answer.status == http.StatusNotFound && !isStatus(answer.body):
		return l.unknown(reasonNotReported, fmt.Sprintf("the server in pod %s does not report the state of %s", pod, l.report.subject))
	case answer.status != http.StatusOK:
		return l.unknown(reasonNotAnswered, fmt.Sprintf("pod %s did not respond: the API server of the Shoot returned %d %s", pod, answer.status, http.StatusText(answer.status)))
	}
	condition, err := l.report.decode(l.cache, answer.body)
	if err != nil {
		return l.unknown(reasonNotReported, fmt.Sprintf("the server in pod %s reports the state of %s in an unknown format", pod, l.report.subject))
	}
	condition.Type = l.report.conditionType
	return condition
}

func upstreamCondition(cache v1alpha3.RegistryCache, body []byte) (metav1.Condition, error) {
	state, err := contract.DecodeUpstreamState(body)
	if err != nil {
		return metav1.Condition{}, err
	}
	condition := metav1.Condition{Status: metav1.ConditionUnknown, Reason: string(state.Reason), Message: state.Message}
	switch state.Reachable {
	case contract.ReachableYes:
		condition.Status = metav1.ConditionTrue
	case contract.ReachableNo:
		condition.Status = metav1.ConditionFalse
		condition.Message += ". " + upstreamRemedy(cache, state.Reason)
	}
	return condition, nil
}

func volumeCondition(_ v1alpha3.RegistryCache, body []byte) (metav1.Condition, error) {
	state, err := contract.DecodeVolumeState(body)
	switch {
	case err != nil:
		return metav1.Condition{}, err
	case state.State != contract.VolumeOK:
		return metav1.Condition{Status: metav1.ConditionFalse, Reason: string(state.Reason), Message: state.Message + ". " + volumeRemedy(state.Reason)}, nil
	case len(state.Problems) > 0:
		return metav1.Condition{Status: metav1.ConditionFalse, Reason: reasonUnusableFiles, Message: unusableFiles(state.Problems)}, nil
	default:
		return metav1.Condition{Status: metav1.ConditionTrue, Reason: string(state.Reason), Message: "the cache can read and write"}, nil
	}
}

// unusableFiles describes files and directories that the cache cannot use.
func unusableFiles(problems []contract.VolumeProblem) string {
	var shown []string
	for _, p := range problems[:min(len(problems), shownProblems)] {
		shown = append(shown, p.Path+": "+p.Message)
	}
	text := "the cache cannot use these files and directories: " + strings.Join(shown, "; ")
	if more := len(problems) - len(shown); more > 0 {
		text += fmt.Sprintf("; and %d more, see %s on port %d of the pod", more, contract.VolumePath, contract.DebugPort)
	}
	return text + ". The cache serves all other content. Delete them, or give the user of the pod access"
}

// volumeRemedy returns the consequence for pulls, and what a Shoot owner can do.
func volumeRemedy(reason contract.VolumeReason) string {
	const passThrough = "The cache serves its readable content, and passes other content through. "
	switch reason {
	case contract.ReasonVolumeFull:
		return passThrough + "Increase volume.size, or decrease garbageCollection.ttl"
	case contract.ReasonNotWritable:
		return passThrough + "Check whether the file system is mounted read-only, and the owner and the permissions of its root directory"
	case contract.ReasonNoResponse:
		return "Nodes pull from the upstream until the volume responds. Check the storage of the PersistentVolume"
	default:
		return passThrough + "Check the storage of the PersistentVolume"
	}
}

// isStatus reports whether a response is that of an API server, instead of that of a pod.
func isStatus(body []byte) bool {
	var status metav1.TypeMeta
	return json.Unmarshal(body, &status) == nil && status.Kind == "Status"
}

// upstreamRemedy returns what a Shoot owner can do.
func upstreamRemedy(cache v1alpha3.RegistryCache, reason contract.Reason) string {
	const rotate = ": make a new one and let the entry of spec.resources refer to it"
	switch reason {
	case contract.ReasonUnauthorized:
		if cache.SecretReferenceName != nil {
			return fmt.Sprintf("Correct the Secret of secretReferenceName %q%s", *cache.SecretReferenceName, rotate)
		}
		return "Give the cache credentials with secretReferenceName (a field of v1alpha3)"
	case contract.ReasonCertificateNotTrusted:
		if cache.CABundleSecretReferenceName != nil {
			return fmt.Sprintf("Correct the roots in the Secret of caBundleSecretReferenceName %q%s", *cache.CABundleSecretReferenceName, rotate)
		}
		return "If the certificate is right, give the cache its roots with caBundleSecretReferenceName (a field of v1alpha3)"
	case contract.ReasonRateLimited:
		return "The cache serves what it has. Credentials (secretReferenceName, a field of v1alpha3) raise the limit of most registries"
	case contract.ReasonFailing:
		return "The cache serves what it has until the upstream has recovered"
	default:
		return "The cache serves what it has. Check that the upstream is up, that pods of the Shoot can reach it, and remoteURL and proxy if the cache has them"
	}
}

// podProxy sends requests to pods of the Shoot through its API server.
type podProxy struct {
	client *http.Client
	base   *url.URL
}

func newPodProxy(config *rest.Config, err error) (*podProxy, error) {
	if err != nil {
		return nil, fmt.Errorf("the Shoot was not reached: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("reading the address of the Shoot's API server: %w", err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("connecting to the Shoot's API server: %w", err)
	}
	// A copy: the library may keep the one that it returns, as it is http.DefaultClient for a plain config. What a pod answers
	// goes through, so a pod could send the credentials of the Shoot anywhere.
	client = &http.Client{Transport: client.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &podProxy{client: client, base: base}, nil
}

// get requests a report from a pod. A body that is too long is one byte longer than the limit.
func (p *podProxy) get(ctx context.Context, pod string, report podReport) podAnswer {
	address := p.base.JoinPath("api/v1/namespaces", desired.Namespace, "pods", fmt.Sprintf("%s:%d", pod, contract.DebugPort), "proxy", report.path)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return podAnswer{err: err}
	}
	response, err := p.client.Do(request)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return podAnswer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, report.maxSize+1))
	return podAnswer{response.StatusCode, body, err}
}
