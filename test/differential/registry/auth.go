// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/registry-cache/extension/test/differential/scenario"
)

const (
	// tokenPath is the path of the token server; with "realm-per-repository", the repository follows.
	tokenPath = "/token/"
	// deniedTokenPath refuses every request, for "refused-realm".
	deniedTokenPath = "/denied"
	// targetTokenPath is the realm of the hosts to which the registry redirects.
	targetTokenPath = "/target"
	// targetScope is the scope of tokens of targetTokenPath.
	targetScope = "target"
)

// token is a token that the token server has issued.
type token struct {
	scopes []string
	issued time.Time
	uses   int
}

func offersBasic(s scenario.Scenario) bool {
	return s.Has("basic") || s.Has("basic-before") || s.Has("basic-after")
}

// authorized reports whether the request may read the repository. Otherwise it sends a response.
func (r *Registry) authorized(w *response, q *http.Request, repository string) bool {
	if !offersBasic(r.s) && !r.s.Has("bearer") {
		return true
	}
	if username, password, ok := q.BasicAuth(); ok && offersBasic(r.s) && r.validCredentials(username, password) {
		return true
	}
	if r.s.Has("bearer") && r.validToken(q, scopeOf(repository)) {
		return true
	}
	refused := strings.HasPrefix(q.Header.Get("Authorization"), "Bearer ")
	switch {
	case refused && r.s.Has("refused-403"):
		w.sendError(http.StatusForbidden)
		return false
	case refused && r.s.Has("refused-bare"):
	default:
		w.Header()["Www-Authenticate"] = r.challenges(repository, refused)
	}
	w.sendError(http.StatusUnauthorized)
	return false
}

func (r *Registry) validCredentials(username, password string) bool {
	return r.s.Has("credentials") && username == Username && password == Password
}

// challenges returns the values of the header WWW-Authenticate.
func (r *Registry) challenges(repository string, refused bool) []string {
	basicScheme, bearerScheme := "Basic", "Bearer"
	if r.s.Has("lower-case-scheme") {
		basicScheme, bearerScheme = "basic", "bearer"
	}
	basic := basicScheme + ` realm="registry"`
	realm := r.tokenServer + tokenPath
	if r.s.Has("realm-per-repository") {
		realm += repository
	}
	if refused && r.s.Has("refused-realm") {
		realm = r.tokenServer + deniedTokenPath
	}
	bearer := fmt.Sprintf(`%s realm="%s",service="registry"`, bearerScheme, realm)
	if !r.s.Has("no-scope") && repository != "" {
		bearer += fmt.Sprintf(`,scope="%s:pull"`, scopeOf(repository))
	}
	if refused && (r.s.Has("refused-error") || r.s.Has("refused-realm")) {
		bearer += `,error="invalid_token"`
	}
	var challenges []string
	switch {
	case r.s.Has("basic"):
		challenges = []string{basic}
	case r.s.Has("basic-before"):
		challenges = []string{basic, bearer}
	case r.s.Has("basic-after"):
		challenges = []string{bearer, basic}
	default:
		challenges = []string{bearer}
	}
	if r.s.Has("one-header") {
		return []string{strings.Join(challenges, ", ")}
	}
	return challenges
}

func scopeOf(repository string) string { return "repository:" + repository }

// validToken reports whether the request has a token that is valid for the scope, and counts its use.
func (r *Registry) validToken(q *http.Request, scope string) bool {
	value, ok := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.tokens[value]
	if !ok || !slices.Contains(t.scopes, scope) && scope != scopeOf("") {
		return false
	}
	if scope == targetScope {
		return true
	}
	if ms, ok := r.s.Number("token-lifetime"); ok && time.Since(t.issued) > time.Duration(ms)*time.Millisecond {
		return false
	}
	t.uses++
	uses, ok := r.s.Number("token-uses")
	return !ok || t.uses <= uses
}

// serveToken is the token server, see https://distribution.github.io/distribution/spec/auth/token/ and
// https://distribution.github.io/distribution/spec/auth/oauth/.
func (r *Registry) serveToken(w *response, q *http.Request) {
	r.pause(q, "pause", scenario.Token)
	if status, ok := r.s.NumberAt("status", scenario.Token); ok && r.faulty("status", scenario.Token, q.Method) {
		w.sendFault(q.Context(), status)
		return
	}
	status, isTarget := http.StatusForbidden, q.URL.Path == targetTokenPath
	username, password, _ := q.BasicAuth()
	if q.Method == http.MethodPost {
		if refused, ok := r.s.Number("no-token-post"); ok {
			w.sendError(refused)
			return
		}
		username, password, status = q.PostFormValue("username"), q.PostFormValue("password"), http.StatusUnauthorized
	}
	var scopes []string
	for _, values := range append(q.URL.Query()["scope"], q.PostFormValue("scope")) {
		for scope := range strings.FieldsSeq(values) {
			scopes = append(scopes, strings.TrimSuffix(scope, ":pull"))
		}
	}
	repository := strings.TrimPrefix(q.URL.Path, tokenPath)
	wrongRealm := r.s.Has("realm-per-repository") && !isTarget && slices.ContainsFunc(scopes, func(s string) bool { return s != scopeOf(repository) })
	if q.URL.Path == deniedTokenPath || wrongRealm || !isTarget && r.s.Has("credentials") && !r.validCredentials(username, password) {
		w.sendError(status)
		return
	}
	if isTarget {
		scopes = []string{targetScope}
	}
	r.mu.Lock()
	value := fmt.Sprintf("token-%d", r.unique())
	r.tokens[value] = &token{scopes: scopes, issued: time.Now()}
	r.mu.Unlock()
	answer := map[string]any{"access_token": value, "token": value}
	if r.s.Has("access-token") || q.Method == http.MethodPost {
		delete(answer, "token")
	}
	if seconds, ok := r.s.Number("expires-in"); ok {
		answer["expires_in"] = seconds
	}
	b, err := json.Marshal(answer)
	if err != nil {
		w.sendError(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, "%s", b) // the client may have disconnected
}
