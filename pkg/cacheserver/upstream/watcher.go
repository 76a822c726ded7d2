// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream/auth"
	"github.com/registry-cache/extension/pkg/contract"
)

// watcher contains the state of the upstream, as the results of requests show it. It is safe for concurrent use.
type watcher struct {
	// credentials reports whether the client has credentials.
	credentials bool

	mu    sync.Mutex // guards state
	state contract.UpstreamState
	// probing has one slot, for the request of State.
	probing chan struct{}
}

func newWatcher(credentials bool) *watcher {
	return &watcher{
		credentials: credentials,
		state:       contract.NewUpstreamState(contract.ReasonNotAsked, "nothing was asked yet"),
		probing:     make(chan struct{}, 1),
	}
}

// current returns the state.
func (w *watcher) current() contract.UpstreamState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// set stores a state. Since changes only with the reason.
func (w *watcher) set(reason contract.Reason, message string) {
	next := contract.NewUpstreamState(reason, message)
	now := time.Now().UTC()
	w.mu.Lock()
	defer w.mu.Unlock()
	next.Since, next.LastRequest = w.state.Since, now
	if w.state.Reason != reason {
		next.Since = now
	}
	w.state = next
}

// answered evaluates a response of the upstream.
func (w *watcher) answered(resp *http.Response) {
	text := fmt.Sprintf("the upstream answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		w.set(contract.ReasonRateLimited, text)
	case resp.StatusCode >= http.StatusInternalServerError:
		w.set(contract.ReasonFailing, text)
	// With a token, 401 is no information about the credentials: the user must not read the image, or it does not exist.
	case resp.StatusCode == http.StatusUnauthorized && hasScheme(resp.Header, "basic") && !hasScheme(resp.Header, "bearer"):
		w.unauthorized(text)
	default:
		w.set(contract.ReasonAnswers, "the upstream answers")
	}
}

// unauthorized stores a rejection of the credentials, or of a request without credentials. text describes the response.
func (w *watcher) unauthorized(text string) {
	if w.credentials {
		w.set(contract.ReasonUnauthorized, text+" to the credentials")
	} else {
		w.set(contract.ReasonUnauthorized, text+", and there are no credentials")
	}
}

// hasScheme reports whether a challenge has the scheme, which is in lower case.
func hasScheme(header http.Header, scheme string) bool {
	return slices.ContainsFunc(auth.ParseChallenges(header), func(c auth.Challenge) bool { return c.Scheme == scheme })
}

// failed evaluates the error of a request without a response. It ignores errors that are no information about the upstream:
// the request was not sent, or was canceled. The caller omits errors of requests whose client has left or has no time left.
func (w *watcher) failed(err error) {
	failure, ok := errors.AsType[*Error](err)
	if !ok || failure.Busy() {
		return
	}
	switch {
	case failure.StatusCode == http.StatusUnauthorized && w.credentials:
		w.unauthorized(tokenServerText(failure))
	// The token server denies access to an image, not the credentials.
	case failure.Denied():
		w.set(contract.ReasonAnswers, "the upstream answers")
	case failure.RateLimited():
		w.set(contract.ReasonRateLimited, tokenServerText(failure))
	case failure.StatusCode != 0:
		w.set(contract.ReasonFailing, tokenServerText(failure))
	case isCertificate(failure.Err):
		w.set(contract.ReasonCertificateNotTrusted, failure.Err.Error())
	default:
		w.set(contract.ReasonUnreachable, failure.Err.Error())
	}
}

// tokenServerText describes an error with a status. It is always a status of the token server: a response of the upstream
// itself is no error here.
func tokenServerText(failure *Error) string {
	return fmt.Sprintf("the token server of the upstream answered %d %s", failure.StatusCode, http.StatusText(failure.StatusCode))
}

// isCertificate reports whether the certificate of the upstream is not trusted.
func isCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}
