// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// garden stands for the API server of the garden, as far as Secrets are read from it.
type garden struct {
	server *httptest.Server
	// secrets are by name what a Secret has beside its metadata; a number to answer that status, "silent" for no answer.
	secrets map[string]string
	ended   chan struct{}

	mu sync.Mutex
	// asked counts the requests by path. mu guards it.
	asked map[string]int
}

func newGarden(t *testing.T, secrets map[string]string) *garden {
	t.Helper()
	g := &garden{secrets: secrets, ended: make(chan struct{}), asked: map[string]int{}}
	g.server = httptest.NewServer(g)
	t.Cleanup(g.server.Close)
	t.Cleanup(func() { close(g.ended) })
	return g
}

func (g *garden) requests(path string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[path]
}

func (g *garden) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.asked[r.URL.Path]++
	g.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/api":
		io.WriteString(w, `{"kind":"APIVersions","versions":["v1"]}`)
		return
	case "/api/v1":
		io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"secrets","kind":"Secret","namespaced":true}]}`)
		return
	case "/apis":
		io.WriteString(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`)
		return
	}
	name, ours := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/garden-dev/secrets/")
	content, exists := g.secrets[name]
	status, _ := strconv.Atoi(content)
	switch {
	case !ours || !exists:
		fail(w, http.StatusNotFound, "NotFound", "not found")
	case content == "silent":
		select {
		case <-r.Context().Done():
		case <-g.ended:
		}
	case status == http.StatusForbidden:
		fail(w, status, "Forbidden", "forbidden for a reason")
	case status != 0:
		fail(w, status, "InternalError", "broken for a reason")
	default:
		fmt.Fprintf(w, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":%q,"namespace":"garden-dev"},%s`, name, content[1:])
	}
}

func fail(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message})
}
