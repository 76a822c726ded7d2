// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"cmp"
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
)

const (
	// defaultLifetime is the lifetime of a token without expires_in (distribution's token specification).
	defaultLifetime = time.Minute
	// maxLifetime limits the lifetime of a token. Registries issue tokens for minutes, some for 12 h.
	maxLifetime = 24 * time.Hour
	// expiryMargin is the time before the end of its lifetime at which a token is no longer used, so that it does not
	// expire on the way. It is at most half of the lifetime.
	expiryMargin = 10 * time.Second
	// maxTokenResponse limits the response of a token server, in bytes. Tokens with many claims have about 10 KiB.
	maxTokenResponse = 64 << 10
	// maxRedirects is the number of redirects that containerd follows.
	maxRedirects = 10
	// clientID identifies the client in OAuth2 requests. It has no meaning for the token server.
	clientID = "registry-cache"
)

// TokenError is a failed request to a token server. Its text contains no query, no token and no credentials.
type TokenError struct {
	// Scopes are the requested ones, separated by spaces.
	Scopes string
	// StatusCode is the status of the response, 0 if there was none or its body was not usable.
	StatusCode int
	// Err is the reason if StatusCode is 0.
	Err error
}

func (e *TokenError) Error() string {
	text := "getting a token"
	if e.Scopes != "" {
		text += " for " + e.Scopes
	}
	if e.StatusCode != 0 {
		return fmt.Sprintf("%s: the token server responded %d %s", text, e.StatusCode, http.StatusText(e.StatusCode))
	}
	return fmt.Sprintf("%s: %v", text, e.Err)
}

func (e *TokenError) Unwrap() error { return e.Err }

// ErrTimeout is wrapped by a TokenError if the token server did not respond in time.
var ErrTimeout = errors.New("no response of the token server within the time limit")

// errNoToken means that a successful response contains no usable token. It does not quote the response, which can contain
// other tokens.
var errNoToken = errors.New("the token server responded without a token")

// grant identifies a token: tokens of another token server or for another scope are different tokens.
type grant struct {
	challenger             origin
	realm, service, scopes string
}

// scopesOf returns the scopes to request for a challenge, sorted and without duplicates. Like containerd, it adds the scope
// of the repository to the scopes of the challenge: some registries send no scope. An empty scope is omitted.
func scopesOf(c Challenge, scope string) string {
	scopes := strings.Fields(c.Parameters["scope"] + " " + scope)
	slices.Sort(scopes)
	return strings.Join(slices.Compact(scopes), " ")
}

// token is an issued token.
type token struct {
	value    string
	lifetime time.Duration
}

// request sends the requests for one token.
type tokenRequest struct {
	grant
	transport http.RoundTripper
	// user is zero for an anonymous token.
	user Credentials
}

// send requests a token with GET. With credentials, it repeats the request with POST (OAuth2) if the response indicates
// that the token server does not support GET; containerd uses both methods in the opposite order. Errors are *TokenError,
// or the error of the context's end.
func (r tokenRequest) send(ctx context.Context) (token, error) {
	realm, err := parseRealm(r.realm, r.challenger)
	if err != nil {
		return token{}, r.failed(ctx, err)
	}
	issued, status, err := r.get(ctx, realm)
	switch status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed:
		if r.user != (Credentials{}) {
			issued, status, err = r.post(ctx, realm)
		}
	}
	if status != 0 && (status < 200 || status > 299) {
		return token{}, &TokenError{Scopes: r.scopes, StatusCode: status}
	}
	if err != nil {
		return token{}, r.failed(ctx, err)
	}
	return issued, nil
}

// failed returns the error of a request without a usable response.
func (r tokenRequest) failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	// The URL in the error contains the query.
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	return &TokenError{Scopes: r.scopes, Err: err}
}

// get requests a token as distribution's token specification defines.
func (r tokenRequest) get(ctx context.Context, realm *url.URL) (token, int, error) {
	u := *realm
	query := u.Query()
	if r.service != "" {
		query.Set("service", r.service)
	}
	for scope := range strings.FieldsSeq(r.scopes) {
		query.Add("scope", scope)
	}
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return token{}, 0, errRealm
	}
	if r.user != (Credentials{}) {
		req.SetBasicAuth(r.user.Username, r.user.Password)
	}
	return r.do(req)
}

// post requests a token as distribution's OAuth2 specification defines.
func (r tokenRequest) post(ctx context.Context, realm *url.URL) (token, int, error) {
	form := url.Values{
		"grant_type": {"password"}, "client_id": {clientID}, "service": {r.service},
		"username": {r.user.Username}, "password": {r.user.Password},
	}
	if r.scopes != "" {
		form.Set("scope", r.scopes)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return token{}, 0, errRealm
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r.do(req)
}

// do sends a request and decodes its response. The status is 0 if there is no response.
func (r tokenRequest) do(req *http.Request) (token, int, error) {
	client := http.Client{Transport: r.transport, CheckRedirect: r.redirect}
	resp, err := client.Do(req)
	if err != nil {
		return token{}, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return token{}, resp.StatusCode, nil
	}
	issued, err := decodeToken(resp.Body)
	return issued, 0, err
}

// redirect checks a redirect of the token server. Credentials are not sent to another server: the header is removed, and a
// form is not sent again.
func (r tokenRequest) redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("the token server redirected more than %d times", maxRedirects)
	}
	req.Header.Del("Referer")
	if originOf(req.URL) != originOf(via[0].URL) {
		if req.Method == http.MethodPost {
			return errors.New("the token server redirected a request with credentials to another server")
		}
		req.Header.Del("Authorization")
	}
	return checkTokenServer(req.URL, r.challenger)
}

// decodeToken reads the response of a token server.
func decodeToken(body io.Reader) (token, error) {
	content, err := io.ReadAll(io.LimitReader(body, maxTokenResponse+1))
	if err != nil {
		return token{}, err
	}
	var response struct {
		Token       string          `json:"token"`
		AccessToken string          `json:"access_token"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
	}
	if len(content) > maxTokenResponse || json.Unmarshal(content, &response) != nil {
		return token{}, errNoToken
	}
	value := cmp.Or(response.AccessToken, response.Token)
	// A header cannot contain control characters.
	if value == "" || strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return token{}, errNoToken
	}
	return token{value: value, lifetime: lifetime(response.ExpiresIn)}, nil
}

// lifetime returns the lifetime in a JSON value of seconds.
func lifetime(value json.RawMessage) time.Duration {
	var seconds float64
	if json.Unmarshal(value, &seconds) != nil || seconds <= 0 {
		return defaultLifetime
	}
	return time.Duration(min(seconds, maxLifetime.Seconds()) * float64(time.Second))
}
