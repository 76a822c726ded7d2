// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"encoding/json"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tokens := newTokens()
		recorder := httptest.NewRecorder()
		query := &Request{Host: "docker.io", Repository: "library/alpine"}
		tokens.serve(recorder, httptest.NewRequest("GET", "/token", nil), query, nil)
		var body struct {
			Token     string
			ExpiresIn int `json:"expires_in"`
		}
		if err := json.Unmarshal(recorder.Body.Bytes(), &body); err != nil || body.ExpiresIn != 300 {
			t.Fatalf("the answer is %s, %v", recorder.Body, err)
		}
		token := "Bearer " + body.Token
		foreign := "Bearer " + newTokens().issue(claim{Host: "docker.io", Repository: "library/alpine", Expires: time.Now().Add(time.Hour)})
		check := func(authorization, host, repository string, want bool) {
			t.Helper()
			if got := tokens.allows(authorization, host, repository, nil); got != want {
				t.Errorf("allows(%q, %q, %q) = %t", authorization, host, repository, got)
			}
		}
		check(token, "docker.io", "library/alpine", true)
		check(token, "docker.io", "", true)
		check(token, "docker.io", "library/busybox", false)
		check(token, "ghcr.io", "library/alpine", false)
		check(foreign, "docker.io", "library/alpine", false)
		check("", "docker.io", "library/alpine", false)
		check("Bearer ", "docker.io", "library/alpine", false)
		check("Bearer e30.e30", "docker.io", "library/alpine", false)
		check("Basic "+body.Token, "docker.io", "library/alpine", false)

		time.Sleep(tokenLifetime) // of the bubble's clock
		check(token, "docker.io", "library/alpine", false)
	})
}

func TestScopedRepository(t *testing.T) {
	t.Parallel()
	for scope, want := range map[string]string{
		"repository:library/alpine:pull":      "library/alpine",
		"repository:library/alpine:push,pull": "library/alpine",
		"repository:library/alpine:push":      "",
		"repository:library/alpine":           "",
		"registry:catalog:*":                  "",
		"":                                    "",
	} {
		if got := scopedRepository(scope); got != want {
			t.Errorf("repository of %q is %q, want %q", scope, got, want)
		}
	}
}
