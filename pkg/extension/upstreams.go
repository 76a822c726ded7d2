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
	// upstreamsTimeout bounds the looks at all upstreams of a Shoot, and leaves time to write the status. A server answers
	// within ten seconds even if it asks the upstream for it.
	upstreamsTimeout = 12 * time.Second
	// maxLooks is how many pods are asked at the same time.
	maxLooks = 8
)

// Reasons of the condition UpstreamReachable that the controller finds by itself, all with the status Unknown.
const (
	// reasonCacheNotReady: there is nobody to ask.
	reasonCacheNotReady = "CacheNotReady"
	// reasonNotAnswered: the pods cannot be asked.
	reasonNotAnswered = "NotAnswered"
	// reasonNotReported: the server in the pods does not tell.
	reasonNotReported = "NotReported"
)

// shootConfig returns how the API server of the Shoot is reached whose namespace in the Seed is given.
type shootConfig func(ctx context.Context, namespace string) (*rest.Config, error)

// updateUpstreams sets the condition UpstreamReachable of the caches that are configured. changed tells whether one is
// another now, settled that nothing is wrong that may change soon. Whatever fails here is in the conditions: that an
// upstream cannot be looked at does not keep anybody from knowing what is ready.
func updateUpstreams(ctx context.Context, config *rest.Config, configErr error, caches []v1alpha3.RegistryCacheStatus, configured map[string]v1alpha3.RegistryCache) (changed, settled bool) {
	ctx, cancel := context.WithTimeout(ctx, upstreamsTimeout)
	defer cancel()
	proxy, err := newPodProxy(config, configErr)
	conditions := make([]*metav1.Condition, len(caches))
	var looks errgroup.Group
	looks.SetLimit(maxLooks)
	for i := range caches {
		cache, ok := configured[caches[i].ObjectName()]
		if !ok {
			continue
		}
		ready := meta.IsStatusConditionTrue(caches[i].Conditions, v1alpha3.ConditionReady)
		looks.Go(func() error {
			switch {
			case !ready:
				conditions[i] = unknownUpstream(reasonCacheNotReady, "no pod of the cache is ready")
			case err != nil:
				conditions[i] = unknownUpstream(reasonNotAnswered, err.Error())
			default:
				conditions[i] = lookAtUpstream(ctx, proxy, cache)
			}
			return nil
		})
	}
	_ = looks.Wait() // no look returns an error
	settled = true
	for i, condition := range conditions {
		if condition == nil {
			continue
		}
		settled = settled && (condition.Status == metav1.ConditionTrue || condition.Reason == reasonNotReported)
		before := meta.FindStatusCondition(caches[i].Conditions, condition.Type)
		if before != nil && before.Status == condition.Status && before.Reason == condition.Reason {
			// Messages of the network differ from one request to the next, and each change of the status leads to another
			// look.
			continue
		}
		changed = meta.SetStatusCondition(&caches[i].Conditions, *condition) || changed
	}
	return changed, settled
}

func unknownUpstream(reason, message string) *metav1.Condition {
	return &metav1.Condition{Type: v1alpha3.ConditionUpstreamReachable, Status: metav1.ConditionUnknown, Reason: reason, Message: message}
}

// lookAtUpstream asks the pods of the cache. Of several answers the worst counts, and those of pods that do not answer only
// if no pod does.
func lookAtUpstream(ctx context.Context, proxy *podProxy, cache v1alpha3.RegistryCache) *metav1.Condition {
	var found *metav1.Condition
	rank := []metav1.ConditionStatus{metav1.ConditionUnknown, metav1.ConditionTrue, metav1.ConditionFalse}
	for ordinal := range desired.Replicas(cache) {
		pod := fmt.Sprintf("%s-%d", cache.ObjectName(), ordinal)
		condition := upstreamCondition(cache, pod, proxy.get(ctx, pod))
		if found == nil || slices.Index(rank, condition.Status) > slices.Index(rank, found.Status) {
			found = condition
		}
	}
	return found
}

// podAnswer is what the API server of the Shoot answers in the place of a pod.
type podAnswer struct {
	status int
	body   []byte
	err    error
}

// upstreamCondition makes the condition of the answer of the pod.
func upstreamCondition(cache v1alpha3.RegistryCache, pod string, answer podAnswer) *metav1.Condition {
	switch {
	case answer.err != nil:
		return unknownUpstream(reasonNotAnswered, fmt.Sprintf("pod %s was not asked: %v", pod, answer.err))
	case answer.status == http.StatusNotFound && !isStatus(answer.body):
		return unknownUpstream(reasonNotReported, fmt.Sprintf("the server in pod %s does not tell about its upstream", pod))
	case answer.status != http.StatusOK:
		return unknownUpstream(reasonNotAnswered, fmt.Sprintf("pod %s was not asked: the API server of the Shoot answered %d %s", pod, answer.status, http.StatusText(answer.status)))
	}
	state, err := contract.DecodeUpstreamState(answer.body)
	if err != nil {
		return unknownUpstream(reasonNotReported, fmt.Sprintf("what the server in pod %s tells about its upstream cannot be read", pod))
	}
	condition := unknownUpstream(string(state.Reason), state.Message)
	switch state.Reachable {
	case contract.ReachableYes:
		condition.Status = metav1.ConditionTrue
	case contract.ReachableNo:
		condition.Status = metav1.ConditionFalse
		condition.Message += ". " + upstreamRemedy(cache, state.Reason)
	}
	return condition
}

// isStatus tells answers of an API server from those of a pod.
func isStatus(body []byte) bool {
	var status metav1.TypeMeta
	return json.Unmarshal(body, &status) == nil && status.Kind == "Status"
}

// upstreamRemedy tells a Shoot owner what to do.
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

// podProxy asks pods of the Shoot through its API server.
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

// get asks a pod for the state of its upstream. A body that is too long is one byte longer than the limit.
func (p *podProxy) get(ctx context.Context, pod string) podAnswer {
	address := p.base.JoinPath("api/v1/namespaces", desired.Namespace, "pods", fmt.Sprintf("%s:%d", pod, contract.DebugPort), "proxy", contract.UpstreamPath)
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
	body, err := io.ReadAll(io.LimitReader(response.Body, contract.MaxUpstreamState+1))
	return podAnswer{response.StatusCode, body, err}
}
