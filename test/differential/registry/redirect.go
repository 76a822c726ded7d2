// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/registry-cache/extension/test/differential/scenario"
)

// targetPrefix begins the paths to which the registry redirects: <prefix><repository>/(manifests|blobs)/<digest>, with
// the query parameters id, a unique identifier of the redirect, and hops, the number of further redirects.
const targetPrefix = "/content/"

// redirect returns the location and status of a redirect. ok is false if the registry serves the target itself.
func (r *Registry) redirect(repository string, c content, isManifest bool, target scenario.Target) (location string, status int, ok bool) {
	if target == scenario.BlobHead {
		target = scenario.Blob
	}
	if status, ok = r.s.NumberAt("redirect", target); !ok {
		return "", 0, false
	}
	kind := "blobs"
	if isManifest {
		kind = "manifests"
	}
	r.mu.Lock()
	id := r.unique()
	r.mu.Unlock()
	return fmt.Sprintf("%s%s%s/%s/%s?id=%d&hops=%d", r.target, targetPrefix, repository, kind, c.digest, id, number(r.s, "redirect-chain", 0)), status, true
}

// serveTarget serves the paths to which the registry redirects.
func (r *Registry) serveTarget(w *response, q *http.Request) {
	rest := strings.TrimPrefix(q.URL.Path, targetPrefix)
	repository, reference, isManifest := strings.Cut(rest, "/manifests/")
	if !isManifest {
		repository, reference, _ = strings.Cut(rest, "/blobs/")
	}
	id := q.URL.Query().Get("id")
	if hops, err := strconv.Atoi(q.URL.Query().Get("hops")); err == nil && hops > 0 {
		w.Header().Set("Location", fmt.Sprintf("%s?id=%s&hops=%d", q.URL.Path, id, hops-1))
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	if r.s.Has("redirect-challenge") && !r.validToken(q, targetScope) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s%s",service="target"`, r.tokenServer, targetTokenPath))
		w.sendError(http.StatusUnauthorized)
		return
	}
	if r.s.Has("redirect-strict") && !r.s.Has("redirect-challenge") && q.Header.Get("Authorization") != "" {
		w.sendError(http.StatusBadRequest)
		return
	}
	if r.s.Has("redirect-single-use") && !r.use(id) {
		w.sendError(http.StatusForbidden)
		return
	}
	target := targetOf(q.Method, isManifest)
	c, ok := r.lookup(repository, reference, isManifest, target)
	if !ok {
		w.sendError(http.StatusNotFound)
		return
	}
	w.sendContent(q.Context(), c, target)
}

// use reports whether this is the first use of the redirect.
func (r *Registry) use(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used[id] {
		return false
	}
	r.used[id] = true
	return true
}
