// A server on the centrifuge library, the engine of Centrifugo, with its Redis broker: client protocol on
// /connection/websocket, and POST /api/publish. Usage: centrifuge PORT REDIS_ADDRESS SECRET
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"
)

const (
	historySize = 100
	historyTTL  = 300 * time.Second
)

type claims struct {
	Subject string `json:"sub"`
	Expiry  int64  `json:"exp"`
}

// verify checks an HS256 token and its expiry, with nothing but the standard library.
func verify(token string, secret []byte) (claims, bool) {
	var found claims
	signed, signature, ok := cutLast(token, ".")
	if !ok {
		return found, false
	}
	_, payload, ok := strings.Cut(signed, ".")
	given, err := base64.RawURLEncoding.DecodeString(signature)
	if !ok || err != nil {
		return found, false
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	if !hmac.Equal(given, mac.Sum(nil)) {
		return found, false
	}
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil || json.Unmarshal(text, &found) != nil {
		return found, false
	}
	return found, found.Expiry > time.Now().Unix()
}

func cutLast(text, separator string) (string, string, bool) {
	at := strings.LastIndex(text, separator)
	if at < 0 {
		return text, "", false
	}
	return text[:at], text[at+1:], true
}

func publish(node *centrifuge.Node, channel string, data []byte) (centrifuge.PublishResult, error) {
	return node.Publish(channel, data, centrifuge.WithHistory(historySize, historyTTL))
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: centrifuge PORT REDIS_ADDRESS SECRET")
	}
	secret := []byte(os.Args[3])
	node, err := centrifuge.New(centrifuge.Config{ClientChannelLimit: 128})
	if err != nil {
		log.Fatal(err)
	}
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: os.Args[2]})
	if err != nil {
		log.Fatal(err)
	}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{
		Prefix: "centrifuge", Shards: []*centrifuge.RedisShard{shard},
	})
	if err != nil {
		log.Fatal(err)
	}
	node.SetBroker(broker)
	node.OnConnecting(func(_ context.Context, event centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		if event.Token == "" {
			return centrifuge.ConnectReply{Credentials: &centrifuge.Credentials{}}, nil
		}
		found, ok := verify(event.Token, secret)
		if !ok {
			return centrifuge.ConnectReply{}, centrifuge.DisconnectInvalidToken
		}
		credentials := &centrifuge.Credentials{UserID: found.Subject, ExpireAt: found.Expiry}
		return centrifuge.ConnectReply{Credentials: credentials, ClientSideRefresh: true}, nil
	})
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(event centrifuge.SubscribeEvent, done centrifuge.SubscribeCallback) {
			options := centrifuge.SubscribeOptions{EnableRecovery: true, EnablePositioning: true}
			done(centrifuge.SubscribeReply{Options: options}, nil)
		})
		client.OnPublish(func(event centrifuge.PublishEvent, done centrifuge.PublishCallback) {
			result, err := publish(node, event.Channel, event.Data)
			done(centrifuge.PublishReply{Result: &result}, err)
		})
	})
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}
	http.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{}))
	http.HandleFunc("/api/publish", func(response http.ResponseWriter, request *http.Request) {
		var body struct {
			Channel string          `json:"channel"`
			Data    json.RawMessage `json:"data"`
		}
		if request.Header.Get("X-API-Key") != os.Args[3] {
			response.WriteHeader(http.StatusUnauthorized)
			return
		}
		if err := json.NewDecoder(request.Body).Decode(&body); err != nil {
			response.WriteHeader(http.StatusBadRequest)
			return
		}
		result, err := publish(node, body.Channel, body.Data)
		response.Header().Set("Content-Type", "application/json")
		if err != nil {
			_, _ = response.Write([]byte(`{"error":{"code":100,"message":"internal server error"}}`))
			return
		}
		position := map[string]any{"offset": result.Offset, "epoch": result.Epoch}
		_ = json.NewEncoder(response).Encode(map[string]any{"result": position})
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
