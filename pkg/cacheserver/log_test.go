// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// accessLine is a line about a request, with the fields that all of them have.
type accessLine struct {
	Msg, Method, Path, Outcome, Client, Error string
	Status                                    int
	Bytes                                     int64
	Seconds                                   *float64
}

// accessLines returns the lines about requests so far, oldest first.
func (c *cache) accessLines(t *testing.T) []accessLine {
	t.Helper()
	var lines []accessLine
	for text := range strings.Lines(c.log.String()) {
		var line accessLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatal(err)
		}
		if line.Msg == "Served request" {
			lines = append(lines, line)
		}
	}
	return lines
}

func writeCredentials(t *testing.T, dir, username, password string) {
	t.Helper()
	for name, value := range map[string]string{"username": username, "password": password} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLogHasEachRequestAndNoSecrets has an upstream with every secret that there can be, and lets it fail in every
// place where one of them is at hand.
func TestLogHasEachRequestAndNoSecrets(t *testing.T) {
	t.Parallel()
	const (
		username, password = "robot", "passwordSECRET"
		token              = "tokenSECRET"
		signature          = "signatureSECRET"
		ofClient           = "clientSECRET"
	)
	u := newFaulty(t, upstream.Options{})
	storage := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", itoa(len(u.contents[path.Base(r.URL.Path)])))
		w.Write(u.contents[path.Base(r.URL.Path)])
	}))
	defer storage.Close()
	tokenAnswer := fmt.Sprintf(`{"token":%q,"expires_in":300}`, token)
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			if _, got, _ := r.BasicAuth(); got != password {
				answers(http.StatusForbidden)(w, r)
				return true
			}
			io.WriteString(w, tokenAnswer)
		case r.Header.Get("Authorization") != "Bearer "+token:
			answers(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token?account=%s"`, r.Host, signature))(w, r)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, storage.URL+"/"+path.Base(r.URL.Path)+"?signature="+signature, http.StatusTemporaryRedirect)
		default:
			return false
		}
		return true
	})
	cfg := u.config(t)
	cfg.Upstream.CredentialsDir = t.TempDir()
	writeCredentials(t, cfg.Upstream.CredentialsDir, username, password)
	c := start(t, cfg, cacheserver.Options{})

	var bodies strings.Builder
	asked := 0
	want := func(method, name string, status int, outcome string) {
		t.Helper()
		got := c.do(t, method, name+"?ns=docker.io&token="+ofClient, "Authorization", "Bearer "+ofClient, "Cookie", ofClient)
		asked++
		if status >= 400 {
			bodies.Write(got.body)
		}
		// A client can have all of an answer before the line is there.
		eventually(t, "there is a line", func() bool { return len(c.accessLines(t)) == asked })
		line := c.accessLines(t)[asked-1]
		if _, _, err := net.SplitHostPort(line.Client); err != nil || line.Seconds == nil || *line.Seconds <= 0 || *line.Seconds > 30 {
			t.Errorf("%s %s: client and seconds of %+v", method, name, line)
		}
		if wantError := status >= 400 || got.err != nil; (line.Error != "") != wantError {
			t.Errorf("%s %s: error %q, want one: %t", method, name, line.Error, wantError)
		}
		line.Client, line.Seconds, line.Error = "", nil, ""
		if want := (accessLine{Msg: "Served request", Method: method, Path: "/v2/" + repository + "/" + name, Outcome: outcome, Status: status, Bytes: int64(len(got.body))}); line != want {
			t.Errorf("%s %s: %+v, want %+v", method, name, line, want)
		}
		c.settle(t)
	}
	want("GET", u.tag(), 200, "miss")
	want("HEAD", u.tag(), 200, "hit")
	want("GET", u.blob(), 200, "miss")
	want("GET", u.blob(), 200, "hit")
	var other string
	for name := range u.contents {
		if strings.HasPrefix(name, "sha256:") && name != u.digest && name != u.layer {
			other = "blobs/" + name
		}
	}
	storage.CloseClientConnections()
	storage.Close()
	want("GET", other, 502, "error")
	want("HEAD", other, 502, "error")
	tokenAnswer = fmt.Sprintf(`{"token":"","refresh_token":%q}`, token)
	writeCredentials(t, cfg.Upstream.CredentialsDir, username, "wrongSECRET")
	// Another repository needs a token of its own, which is refused.
	refused := c.doIn(t, "another/repository", "GET", "manifests/v1")
	asked++
	bodies.Write(refused.body)
	if refused.status != http.StatusForbidden {
		t.Errorf("wrong password: %d %s", refused.status, refused.body)
	}
	writeCredentials(t, cfg.Upstream.CredentialsDir, username, password)
	useless := c.doIn(t, "another/repository", "GET", "manifests/v1")
	asked++
	bodies.Write(useless.body)
	if useless.status != http.StatusBadGateway {
		t.Errorf("answer without a token: %d %s", useless.status, useless.body)
	}
	eventually(t, "there are all lines", func() bool { return len(c.accessLines(t)) == asked })

	basic := base64.StdEncoding.EncodeToString([]byte(username + ":" + password))
	for what, text := range map[string]string{"log": c.log.String(), "error bodies": bodies.String(), "metrics": string(c.debug(t, "/metrics").body)} {
		for _, secret := range []string{"SECRET", basic, "signature=", "account=", "ns=docker.io"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q is in the %s:\n%s", secret, what, text)
			}
		}
	}
	if !strings.Contains(bodies.String(), "errors") {
		t.Error("there are no error bodies, so this shows nothing")
	}
}

// doIn is do for another repository.
func (c *cache) doIn(t *testing.T, repository, method, name string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.Address()+"/v2/"+repository+"/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, body, err}
}
